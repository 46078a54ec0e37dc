"""The gated exponential moving average, and its faster kernels."""

from synthe_core.ops.gated_average import composed, native, triton
from synthe_core.ops.gated_average.reference import gated_average

__all__ = ["composed", "gated_average", "native", "triton"]

"""The (gated) delta rule, and its faster kernels."""

from synthe_core.ops.delta_rule import chunked, fla, native, triton
from synthe_core.ops.delta_rule.reference import delta_rule

__all__ = ["chunked", "delta_rule", "fla", "native", "triton"]

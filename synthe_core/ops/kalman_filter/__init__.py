"""The diagonal Kalman filter, and its faster kernels."""

from synthe_core.ops.kalman_filter import native, parallel, triton
from synthe_core.ops.kalman_filter.reference import Filtered, kalman_filter

__all__ = ["Filtered", "kalman_filter", "native", "parallel", "triton"]

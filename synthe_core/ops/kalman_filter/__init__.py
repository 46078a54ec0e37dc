"""The diagonal Kalman filter, and its faster kernels."""

from synthe_core.ops.kalman_filter import native, parallel
from synthe_core.ops.kalman_filter.reference import Filtered, kalman_filter

__all__ = ["Filtered", "kalman_filter", "native", "parallel"]

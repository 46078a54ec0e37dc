"""A Kalman filter whose estimate has a full covariance in every head, and its faster kernel."""

from synthe_core.ops.matrix_kalman_filter import native
from synthe_core.ops.matrix_kalman_filter.reference import MatrixFiltered, matrix_kalman_filter

__all__ = ["MatrixFiltered", "matrix_kalman_filter", "native"]

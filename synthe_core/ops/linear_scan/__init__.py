"""The first-order linear recurrence of every channel by itself, and its faster kernels."""

from synthe_core.ops.linear_scan import blocked, fla, native, triton
from synthe_core.ops.linear_scan.reference import linear_scan

__all__ = ["blocked", "fla", "linear_scan", "native", "triton"]

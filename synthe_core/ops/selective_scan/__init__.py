"""The selective scan of Mamba, and its faster kernels."""

from synthe_core.ops.selective_scan import native, segmented, triton
from synthe_core.ops.selective_scan.reference import selective_scan

__all__ = ["native", "segmented", "selective_scan", "triton"]

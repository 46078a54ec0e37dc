"""Peak memory of a function, as the operating system or the CUDA allocator counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> int | None:
    """Peak resident bytes of this process, libraries included, while `work` runs; None if the system does not report
    them."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's own high-water mark (Linux)
    except OSError:
        work()
        return None
    before = psutil.Process().memory_info().rss
    work()
    peaks = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return max(before, int(peaks[0].split()[1]) * 1024)

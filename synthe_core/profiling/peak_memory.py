"""The largest memory that a piece of work held, as the operating system or the CUDA allocator saw it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> int | None:
    """Peak resident bytes of this process (all of it, libraries included) while `work` runs; None where unknowable."""
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
    marks = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return max(before, int(marks[0].split()[1]) * 1024)

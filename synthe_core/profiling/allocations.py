"""The bytes of tensors that a function allocates, as torch's own allocator counts them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler logs to stderr; read at its first use

import torch
from torch.profiler import ProfilerActivity, profile


class Allocations(NamedTuple):
    """Bytes beyond those before the call: the peak during it, and what is still allocated after it."""

    peak: int
    retained: int


def measure_allocations(work: Callable[[], object], device: str = "cpu") -> Allocations:
    """What `work` allocates. Its result counts as retained."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = work()
        torch.cuda.synchronize()
        peak, retained = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
        del result
        return Allocations(peak, retained)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    current = peak = 0
    for _, size in changes:
        current += size
        peak = max(peak, current)
    del result
    return Allocations(peak, current)

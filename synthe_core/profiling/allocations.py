"""The tensors that a piece of work holds at once, as torch's own allocator saw them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler tells its own life on stderr; read at its first use

import torch
from torch.profiler import ProfilerActivity, profile


class Held(NamedTuple):
    """Bytes beyond those before the work: the most that were held at once, and those still held after it."""

    most: int
    after: int


def held(work: Callable[[], object], device: str = "cpu") -> Held:
    """What `work` allocates; its result is dropped only after it was counted."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = work()
        torch.cuda.synchronize()
        most, after = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
        del result
        return Held(most, after)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        result = work()
    events = told.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = most = 0
    for _, size in changes:
        now += size
        most = max(most, now)
    del result
    return Held(most, now)

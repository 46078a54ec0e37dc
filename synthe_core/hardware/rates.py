"""How fast this machine is, measured: the rates that precision is chosen by and that throughput is compared with."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

SPENT = 0.15  # seconds given to each measurement, after one call to warm up


@functools.cache
def measure_matmul(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int | None = None) -> float:
    """Floating-point operations a second of `[size, size] @ [size, size]`: the best of the calls made in `SPENT`."""
    size = size or (1024 if device == "cpu" else 8192)
    own = torch.Generator(device).manual_seed(0)  # measuring must not draw from a run's random numbers
    left, right = (torch.randn(size, size, device=device, generator=own).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / _fastest(lambda: torch.mm(left, right, out=out), device)


@functools.cache
def measure_copy(device: str = "cpu", size: int = 1 << 28) -> float:
    """Bytes a second that memory reads plus writes: a copy of `size` bytes, far more than any cache holds."""
    source = torch.zeros(size // 4, device=device)
    target = torch.ones_like(source)
    return 2.0 * size / _fastest(lambda: target.copy_(source), device)


def _fastest(work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest call; at least three are made after the first, which is not counted."""
    best, begun, calls = float("inf"), 0.0, -1
    while calls < 3 or time.perf_counter() - begun < SPENT:
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        if calls >= 0:
            best = min(best, time.perf_counter() - start)
        else:
            begun = time.perf_counter()
        calls += 1
    return best


def _wait(device: str) -> None:
    """Until the accelerator has done what it was given; a CPU does it at once."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device.startswith("mps"):
        torch.mps.synchronize()

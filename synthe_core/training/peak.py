"""How fast this machine multiplies matrices: what "percent of peak" is measured against."""

from __future__ import annotations

import functools
import time

import torch

from synthe_core.training.settings import Settings

SIDE = {"cpu": 1024, "cuda": 8192, "mps": 2048}
ROUNDS = 5


@functools.cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large square product, the best of a few; measured once a process."""
    settings = Settings(device, {})
    side = SIDE[device.type]
    a, b = (torch.ones(side, side, dtype=getattr(torch, precision), device=device) for _ in range(2))
    fastest = float("inf")
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        a @ b
        settings.wait()
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * side**3 / fastest

"""Timing that survives a noisy machine: the candidates take turns in one process, and ratios are taken turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds: the median of all turns, and the fastest and slowest."""

    median: float
    fastest: float
    slowest: float


class Paired(NamedTuple):
    """Timings by name, and by name the median over turns of (its seconds / the first one's seconds)."""

    timings: dict[str, Timing]
    ratios: dict[str, float]


def paired(candidates: Mapping[str, Callable[[], object]], turns: int = 7, device: str = "cpu") -> Paired:
    """Runs every candidate once to warm up, then `turns` times in alternation. Ratios are against the first."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(turns):
        for name, run in candidates.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(candidates))
    timings = {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(s, seconds[first], strict=True)) for name, s in seconds.items()
    }
    return Paired(timings, ratios)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()

"""What a pass on the simulated device does: kernel launches, host waits and copies from the host, by line."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "synthe_core"

LAUNCHES = {
    "_index_put_impl_": 3,
    "argsort": 3,
    "cumsum": 2,
    "index_put": 3,
    "index_put_": 3,
    "linalg_solve_triangular": 2,
    "logsumexp": 4,
    "multinomial": 4,
    "nonzero": 3,
    "scatter_reduce": 2,
    "sort": 3,
    "topk": 3,
}
"""Operators that are several kernels on CUDA, about; every other one is a single kernel."""


@dataclass
class Counts:
    """kernels: launches by operator; lines: by the line that led to them. waits: "item @ file:line" -> how often the
    host waits for the device there. copies: from the host, by line."""

    kernels: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)

    @property
    def launches(self) -> int:
        return self.kernels.total()

    def launch(self, kernel: str, count: int | None = None) -> None:
        number = LAUNCHES.get(kernel, 1) if count is None else count
        self.kernels[kernel] += number
        self.lines[line()] += number

    def wait(self, kind: str) -> None:
        self.waits[f"{kind} @ {line()}"] += 1

    def copy(self) -> None:
        self.copies[line()] += 1


_current: list[Counts] = []


def current() -> Counts | None:
    """The innermost counts that are open; None outside of `counting`."""
    return _current[-1] if _current else None


@contextmanager
def counting() -> Iterator[Counts]:
    """Within the block, what happens on the device is counted in the value."""
    counts = Counts()
    _current.append(counts)
    try:
        yield counts
    finally:
        _current.pop()


def line() -> str:
    """The innermost line of `synthe_core` that runs, "autograd" where the engine of the backward pass runs."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parts:
            return f"{'/'.join(path.parts[path.parts.index(PACKAGE) + 1 :])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "autograd"

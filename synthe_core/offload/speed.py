"""How fast a model whose weights are read in each pass will be: measured with passes of its own before the first text,
and again with every pass since."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synthe_core.layers.quantized import quantized_matrix
from synthe_core.model.head import Head
from synthe_core.model.language_model import LanguageModel
from synthe_core.offload.model import Offload
from synthe_core.offload.plan import LONG, TEXTS
from synthe_core.quantization.matrix import quantized_bytes
from synthe_core.quantization.sliced import SlicedMatrix
from synthe_core.units import format_size

TURNS, PART = 8, 4096
"""Parts of the head, of so many outputs."""
PASSES, LONGEST = 3, 10.0
"""Passes of one text that are run at most, the first of which counts only if it is the only one; and seconds after
which none begins. Of a model whose single pass takes longer none is run."""

Run = Callable[[Tensor, Any], Tensor]
"""The head's input [B, 1, D] after tokens int64 [B, 1] and a state."""


@dataclass(frozen=True)
class SpeedEstimate:
    """read: seconds in which a pass' weights are read; compute: seconds of its products, for one text and for `rows`,
    the most for which there is room, or 16. passes: seconds of passes of one text that were run."""

    read: float
    compute: tuple[float, float]
    rows: int
    bytes_per_second: float
    passes: tuple[float, ...] = ()

    def seconds(self, rows: int = 1) -> float:
        """Of a pass of one text or of `rows`. Reading and products go on side by side: it takes as long as the slower
        of them, and as the passes took that were run."""
        if not self.passes:
            return max(self.read, self.compute[rows > 1])
        one = sum(self.passes) / len(self.passes)
        return one if rows == 1 else max(one, self.compute[1])

    def tokens_per_second(self, rows: int = 1) -> float:
        """Of all texts together, of one or of `rows`."""
        return rows / self.seconds(rows)

    def __str__(self) -> str:
        is_slow_disk = self.read >= self.compute[0]
        limit = f"the disk, {self.bytes_per_second / 1e9:.1f} GB/s" if is_slow_disk else "the processor"
        ends = [f"{1 / each:.2g}" for each in (max(self.passes, default=1), min(self.passes, default=1))]
        spread = f" ({' to '.join(ends)})" if ends[0] != ends[1] else ""
        text = f"{self.tokens_per_second():.2g} tokens/s{spread}: limited by {limit}"
        if self.rows == 1:
            return text
        return f"{text}; {self.rows} rows at a time give {self.tokens_per_second(self.rows):.2g}"


@torch.inference_mode()
def estimate_speed(model: LanguageModel, run: Run | None = None) -> SpeedEstimate:
    """In an active context of the model. Passes of one text are run where they are short enough. Else, and for more
    texts, products with parts of the head are timed, and those of all weights taken to last longer as they are
    larger."""
    offload: Offload = model.offload
    head = model.head
    nbytes = _bytes(head)
    share = (offload.plan.fixed + offload.plan.resident_bytes + offload.plan.streamed) / nbytes
    most = max(1, min(TEXTS, offload.plan.states // max(1, model.state_bytes(LONG))))
    compute = tuple(_seconds(head, rows) * share for rows in (1, most))
    read = offload.read_bytes / offload.bytes_per_second if offload.read_bytes else 0.0
    short = run is not None and offload.read_bytes > 0 and max(read, compute[0]) < LONGEST
    passes = _passes(model, run) if short and run is not None else ()
    return SpeedEstimate(read, (compute[0], compute[1]), most, offload.bytes_per_second, passes)


def _passes(model: LanguageModel, run: Run) -> tuple[float, ...]:
    """Seconds of passes of one text."""
    state, seconds = model.init_state(1), list[float]()
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    while len(seconds) < PASSES and sum(seconds) < LONGEST:
        began = time.perf_counter()
        model.head(run(tokens, state)[:, -1])
        seconds.append(time.perf_counter() - began)
    return tuple(seconds[1:] or seconds)


def _bytes(head: Head) -> int:
    matrix = quantized_matrix(head)
    if isinstance(matrix, SlicedMatrix):
        return 4 * matrix.numel()
    return quantized_bytes(head) or head.weight.nbytes


def _seconds(head: Head, rows: int) -> float:
    """Of the head's product with some rows: of the fastest part, since other processes slow the others down."""
    x, size = torch.ones(rows, head.in_features), min(PART, head.out_features)
    seconds = []
    if isinstance(matrix := quantized_matrix(head), SlicedMatrix):  # of a part that is in memory
        head = Head(head.in_features, size)
        head.weight = torch.nn.Parameter(matrix.rows(slice(size)), requires_grad=False)
        return min(_seconds(head, rows) for _ in range(TURNS)) * matrix.shape[0] / size
    for first in range(0, head.out_features - size + 1, size)[:TURNS]:
        began = time.perf_counter()
        head.project(x, slice(first, first + size))
        seconds.append(time.perf_counter() - began)
    return min(seconds) * head.out_features / size


def describe(model: LanguageModel, speed: SpeedEstimate) -> str:
    """What of the weights is where, and how fast that is."""
    offload: Offload = model.offload
    plan = offload.plan
    stay = f"{format_size(plan.fixed + plan.resident_bytes)} of weights stay in {format_size(plan.memory)} of memory"
    if not plan.streamed:
        return f"{stay}: all of them"
    made = "" if offload.converted is None else f", from {offload.converted}"
    return f"{stay}, {format_size(plan.streamed)} are read in each pass{made}; {speed}"


def measure_speed(model: LanguageModel, run: Run | None = None) -> None:
    """Has a model's `offload` say how fast it is; see `estimate_speed`."""
    model.offload = model.offload._replace(summary=describe(model, estimate_speed(model, run)))

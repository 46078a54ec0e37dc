"""How fast a model whose weights are read in each pass will be, from what was measured while it was loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from synthe_core.model.head import Head
from synthe_core.model.language_model import LanguageModel
from synthe_core.offload.model import Offload
from synthe_core.offload.plan import LONG, TEXTS
from synthe_core.quantization.matrix import quantized_bytes
from synthe_core.units import format_size

TURNS, PART = 8, 4096
"""Parts of the head, of so many outputs."""


@dataclass(frozen=True)
class SpeedEstimate:
    """read: seconds in which a pass' weights are read; compute: seconds of its products, for one text and for `rows`,
    the most for which there is room, or 16."""

    read: float
    compute: tuple[float, float]
    rows: int
    bytes_per_second: float

    def tokens_per_second(self, rows: int = 1) -> float:
        """Of all texts together, of one or of `rows`. Reading and products go on side by side: a pass takes as long as
        the slower of them."""
        return rows / max(self.read, self.compute[rows > 1])

    def __str__(self) -> str:
        is_slow_disk = self.read >= self.compute[0]
        limit = f"the disk, {self.bytes_per_second / 1e9:.1f} GB/s" if is_slow_disk else "the processor"
        text = f"{self.tokens_per_second():.2g} tokens/s: limited by {limit}"
        if self.rows == 1:
            return text
        return f"{text}; {self.rows} rows at a time give {self.tokens_per_second(self.rows):.2g}"


@torch.inference_mode()
def estimate_speed(model: LanguageModel) -> SpeedEstimate:
    """In an active context of the model: products with parts of the head are timed, and those of all weights taken to
    last longer as they are larger."""
    offload: Offload = model.offload
    head = model.head
    nbytes = quantized_bytes(head) or head.weight.nbytes
    share = (offload.plan.fixed + offload.plan.resident_bytes + offload.plan.streamed) / nbytes
    most = max(1, min(TEXTS, offload.plan.states // max(1, model.state_bytes(LONG))))
    compute = tuple(_seconds(head, rows) * share for rows in (1, most))
    read = offload.read_bytes / offload.bytes_per_second if offload.read_bytes else 0.0
    return SpeedEstimate(read, (compute[0], compute[1]), most, offload.bytes_per_second)


def _seconds(head: Head, rows: int) -> float:
    """Of the head's product with some rows: of the fastest part, since other processes slow the others down."""
    x, size = torch.ones(rows, head.in_features), min(PART, head.out_features)
    seconds = []
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

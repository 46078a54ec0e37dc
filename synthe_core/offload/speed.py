"""How fast a model whose weights are read in each pass will be, from what was measured while it was loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from synthe_core.model.language_model import LanguageModel
from synthe_core.offload.model import Offload
from synthe_core.quantization.matrix import quantized_bytes
from synthe_core.units import format_size

ROWS = 16
"""Texts at once of which the speed is said, beside that of one."""
TURNS = 3


@dataclass(frozen=True)
class SpeedEstimate:
    """read: seconds in which a pass' weights are read; compute: seconds of its products, for one text and for ROWS."""

    read: float
    compute: tuple[float, float]
    bytes_per_second: float

    def tokens_per_second(self, rows: int = 1) -> float:
        """Of all texts together, of one or of ROWS. Reading and products go on side by side: a pass takes as long as
        the slower of them."""
        return rows / max(self.read, self.compute[rows > 1])

    def __str__(self) -> str:
        is_slow_disk = self.read >= self.compute[0]
        limit = f"the disk, {self.bytes_per_second / 1e9:.1f} GB/s" if is_slow_disk else "the processor"
        one, many = self.tokens_per_second(), self.tokens_per_second(ROWS)
        return f"{one:.2g} tokens/s: limited by {limit}; {ROWS} rows at a time give {many:.2g}"


@torch.inference_mode()
def estimate_speed(model: LanguageModel) -> SpeedEstimate:
    """In an active context of the model: the head's product is timed, and that of all weights taken to last longer as
    they are larger."""
    offload: Offload = model.offload
    head = model.head
    matrix = head._modules.get("matrix")
    nbytes = quantized_bytes(head) if matrix is not None else head.weight.nbytes
    share = (offload.plan.fixed + offload.plan.resident_bytes + offload.plan.streamed) / nbytes
    compute = []
    for rows in (1, ROWS):
        x = torch.ones(rows, model.spec.width)
        seconds = []
        for _ in range(TURNS):
            began = time.perf_counter()
            head(x)
            seconds.append(time.perf_counter() - began)
        compute.append(min(seconds) * share)
    return SpeedEstimate(
        offload.read_bytes / offload.bytes_per_second, (compute[0], compute[1]), offload.bytes_per_second
    )


def describe(model: LanguageModel, speed: SpeedEstimate) -> str:
    """What of the weights is where, and how fast that is."""
    offload: Offload = model.offload
    plan = offload.plan
    stay = f"{format_size(plan.fixed + plan.resident_bytes)} of weights stay in {format_size(plan.memory)} of memory"
    if not plan.streamed:
        return f"{stay}: all of them"
    made = "" if offload.converted is None else f", from {offload.converted}"
    return f"{stay}, {format_size(plan.streamed)} are read in each pass{made}; {speed}"

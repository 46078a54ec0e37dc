"""Metrics of training steps: loss, speed, share of the machine's peak, memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from synthe_core.evaluation.accumulators import FlopCounter, WeightedMeans, add_means, flop_values
from synthe_core.hardware.rates import measure_matmul
from synthe_core.model.language_model import Mean
from synthe_core.profiling import device_memory
from synthe_core.training.distributed.ranks import SINGLE, Ranks
from synthe_core.training.gradients import BatchLoss
from synthe_core.training.settings import Settings

BACKWARD = 3.0  # forward and backward together cost three times the forward pass


class Meter:
    """Means over steps, of all processes that train together. Losses stay on the device until they are read.

    bytes_per_token: of the text that is predicted; None where a class is.
    """

    def __init__(self, settings: Settings, bytes_per_token: float | None, ranks: Ranks = SINGLE) -> None:
        self._settings, self._bytes_per_token, self._ranks = settings, bytes_per_token, ranks
        self.tokens_per_second: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._nats: list[Any] = []
        self._auxiliary: dict[str, list[Any]] = {}
        self._measures, self._flops = WeightedMeans(), FlopCounter()
        self._means: dict[str, Mean] = {}
        self._targets, self._tokens, self._seconds = 0, 0, 0.0

    def add(self, batch: BatchLoss, seconds: float, flops: float) -> None:
        """Adds a step of `seconds` whose forward pass takes `flops` per token if nothing is skipped."""
        self._nats.append(batch.total)
        for name, value in batch.auxiliary.items():
            self._auxiliary.setdefault(name, []).append(value)
        self._targets += batch.num_targets
        self._tokens += batch.batch_tokens
        self._measures.add(batch.measures, batch.num_tokens)
        add_means(self._means, batch.means)
        self._flops.add(batch.num_tokens, flops, batch.skipped_flops)
        self._seconds += seconds

    def read(self) -> dict[str, float]:
        """The means since the last reading, in nats per target, bits per byte, tokens per second, fractions, bytes. All
        processes read together; the memory is this one's."""
        sums = self._sums()
        loss = sums["nats", ""] / max(self._targets, 1)
        rate = self._tokens / max(self._seconds, 1e-9)
        peak = measure_matmul(self._settings.device.type, getattr(torch, self._settings.precision)) * self._ranks.size
        values = {"loss": loss}
        if self._bytes_per_token is not None:
            values["bits_per_byte"] = loss / math.log(2) / self._bytes_per_token
        flops = flop_values(sums["flops", "tokens"], sums["flops", "dense"], sums["flops", "skipped"])
        values |= {
            "tokens_per_second": rate,
            "peak_fraction": BACKWARD * flops["flops"] * rate / peak,
            "memory": float(device_memory.used_bytes(self._settings.device)),
        }
        for name, parts in self._auxiliary.items():
            values[name] = sums["auxiliary", name] / len(parts)
        values |= _ratios(sums, "measures") | flops | _ratios(sums, "means")
        self.tokens_per_second = rate
        self._clear()
        return values

    def _sums(self) -> dict[tuple[str, str], float]:
        """What was added since the last reading, by all processes."""
        mine = {("nats", ""): sum(map(float, self._nats))}
        mine |= {("auxiliary", name): sum(map(float, parts)) for name, parts in self._auxiliary.items()}
        mine |= {("flops", name): value for name, value in self._flops.sums().items()}
        ratios: dict[str, Mapping[str, tuple[Any, Any]]] = {"measures": self._measures.sums(), "means": self._means}
        for kind, means in ratios.items():
            for name, (total, weight) in means.items():
                mine |= {(kind, name): float(total), (f"{kind} weight", name): float(weight)}
        everyone: Any = Counter()
        for part in self._ranks.gather(mine):
            everyone.update(part)
        return dict(everyone)


def _ratios(sums: Mapping[tuple[str, str], float], kind: str) -> dict[str, float]:
    """The means of a kind, of those names that count something."""
    names = [name for each, name in sums if each == kind and sums[f"{kind} weight", name]]
    return {name: sums[kind, name] / sums[f"{kind} weight", name] for name in names}

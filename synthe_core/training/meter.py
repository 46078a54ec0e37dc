"""Metrics of training steps: loss, speed, share of the machine's peak, memory."""

from __future__ import annotations

import math
from typing import Any

import torch

from synthe_core.evaluation.accumulators import FlopCounter, WeightedMeans, add_means, mean_values
from synthe_core.hardware.rates import measure_matmul
from synthe_core.model.language_model import Mean
from synthe_core.profiling import device_memory
from synthe_core.training.gradients import BatchLoss
from synthe_core.training.settings import Settings

BACKWARD = 3.0  # forward and backward together cost three times the forward pass


class Meter:
    """Means over steps. Losses stay on the device until they are read.

    bytes_per_token: of the text that is predicted; None where a class is.
    """

    def __init__(self, settings: Settings, bytes_per_token: float | None) -> None:
        self._settings, self._bytes_per_token = settings, bytes_per_token
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
        self._tokens += batch.num_tokens
        self._measures.add(batch.measures, batch.num_tokens)
        add_means(self._means, batch.means)
        self._flops.add(batch.num_tokens, flops, batch.skipped_flops)
        self._seconds += seconds

    def read(self) -> dict[str, float]:
        """The means since the last reading, in nats per target, bits per byte, tokens per second, fractions, bytes."""
        loss = sum(float(nats) for nats in self._nats) / max(self._targets, 1)
        rate = self._tokens / max(self._seconds, 1e-9)
        peak = measure_matmul(self._settings.device.type, getattr(torch, self._settings.precision))
        values = {"loss": loss}
        if self._bytes_per_token is not None:
            values["bits_per_byte"] = loss / math.log(2) / self._bytes_per_token
        flops = self._flops.values()
        values |= {
            "tokens_per_second": rate,
            "peak_fraction": BACKWARD * flops["flops"] * rate / peak,
            "memory": float(device_memory.used_bytes(self._settings.device)),
        }
        for name, parts in self._auxiliary.items():
            values[name] = sum(map(float, parts)) / len(parts)
        values |= {name: float(value) for name, value in self._measures.values().items()} | flops
        values |= mean_values(self._means)
        self.tokens_per_second = rate
        self._clear()
        return values

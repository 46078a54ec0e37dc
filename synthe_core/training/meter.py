"""What a step achieved: loss, speed, share of the machine's peak, memory."""

from __future__ import annotations

import math
from typing import Any

import torch

from synthe_core.hardware_rates import measure_matmul
from synthe_core.training import memory
from synthe_core.training.gradients import Outcome
from synthe_core.training.settings import Settings

BACKWARD = 3.0  # forward and backward together cost three times the forward pass


class Meter:
    """Gathers steps and gives their means. Losses stay on the device until they are read.

    bytes_per_token: of the text that is predicted; None where a class is.
    """

    def __init__(self, settings: Settings, bytes_per_token: float | None) -> None:
        self._settings, self._bytes_per_token = settings, bytes_per_token
        self.tokens_per_second: float | None = None
        self.busy = 0.0
        self._clear()

    def _clear(self) -> None:
        self._nats: list[Any] = []
        self._auxiliary: dict[str, list[Any]] = {}
        self._scored, self._tokens, self._operations, self.busy = 0, 0, 0.0, 0.0

    def add(self, outcome: Outcome, seconds: float, flops: float) -> None:
        """A step of `seconds` whose forward pass takes `flops` a token."""
        self._nats.append(outcome.nats)
        for name, value in outcome.auxiliary.items():
            self._auxiliary.setdefault(name, []).append(value)
        self._scored += outcome.scored
        self._tokens += outcome.tokens
        self._operations += BACKWARD * flops * outcome.tokens
        self.busy += seconds

    def read(self) -> dict[str, float]:
        """The means since the last reading, in nats per target, bits per byte, tokens per second, fractions, bytes."""
        loss = sum(float(nats) for nats in self._nats) / max(self._scored, 1)
        rate = self._tokens / max(self.busy, 1e-9)
        peak = measure_matmul(self._settings.device.type, getattr(torch, self._settings.precision))
        values = {"loss": loss}
        if self._bytes_per_token is not None:
            values["bits_per_byte"] = loss / math.log(2) / self._bytes_per_token
        values |= {
            "tokens_per_second": rate,
            "peak_fraction": self._operations / max(self.busy, 1e-9) / peak,
            "memory": float(memory.in_use(self._settings.device)),
        }
        for name, parts in self._auxiliary.items():
            values[name] = sum(map(float, parts)) / len(parts)
        self.tokens_per_second = rate
        self._clear()
        return values

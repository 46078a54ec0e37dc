"""What a step achieved: loss, speed, share of the machine's peak, memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from synthe_core.hardware.rates import measure_matmul
from synthe_core.training import memory
from synthe_core.training.gradients import Means, Outcome
from synthe_core.training.settings import Settings

BACKWARD = 3.0  # forward and backward together cost three times the forward pass


class Cost:
    """Floating-point operations of forward passes: `flops` as executed and `flops_dense` as if nothing had been
    skipped, each per token."""

    def __init__(self) -> None:
        self._tokens, self._dense = 0, 0.0
        self._skipped: list[Tensor | float] = []

    def add(self, tokens: int, flops: float, skipped: Tensor | float) -> None:
        """A pass over `tokens` that states `flops` a token and left out `skipped` of all of them."""
        self._tokens += tokens
        self._dense += flops * tokens
        self._skipped.append(skipped)

    def values(self) -> dict[str, float]:
        tokens = max(self._tokens, 1)
        executed = self._dense - math.fsum(map(float, self._skipped))
        return {"flops": executed / tokens, "flops_dense": self._dense / tokens}


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
        self._measures, self._cost = Means(), Cost()
        self._scored, self._tokens, self.busy = 0, 0, 0.0

    def add(self, outcome: Outcome, seconds: float, flops: float) -> None:
        """A step of `seconds` whose forward pass takes `flops` a token, less what was skipped."""
        self._nats.append(outcome.nats)
        for name, value in outcome.auxiliary.items():
            self._auxiliary.setdefault(name, []).append(value)
        self._scored += outcome.scored
        self._tokens += outcome.tokens
        self._measures.add(outcome.measures, outcome.tokens)
        self._cost.add(outcome.tokens, flops, outcome.skipped)
        self.busy += seconds

    def read(self) -> dict[str, float]:
        """The means since the last reading, in nats per target, bits per byte, tokens per second, fractions, bytes."""
        loss = sum(float(nats) for nats in self._nats) / max(self._scored, 1)
        rate = self._tokens / max(self.busy, 1e-9)
        peak = measure_matmul(self._settings.device.type, getattr(torch, self._settings.precision))
        values = {"loss": loss}
        if self._bytes_per_token is not None:
            values["bits_per_byte"] = loss / math.log(2) / self._bytes_per_token
        flops = self._cost.values()
        values |= {
            "tokens_per_second": rate,
            "peak_fraction": BACKWARD * flops["flops"] * rate / peak,
            "memory": float(memory.in_use(self._settings.device)),
        }
        for name, parts in self._auxiliary.items():
            values[name] = sum(map(float, parts)) / len(parts)
        values |= {name: float(value) for name, value in self._measures.values().items()} | flops
        self.tokens_per_second = rate
        self._clear()
        return values

"""Running sums of what forward passes report. Values stay on the device until they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from synthe_core.model.language_model import Mean


class WeightedMeans:
    """Weighted means of named values."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def sums(self) -> dict[str, tuple[Tensor, float]]:
        """The weighted sum and the sum of the weights, by name."""
        return {name: (total, self._weights[name]) for name, total in self._sums.items()}

    def values(self) -> dict[str, Tensor]:
        return {name: total / max(self._weights[name], 1e-9) for name, total in self._sums.items()}


def add_means(sums: dict[str, Mean], means: Mapping[str, Mean]) -> None:
    """Adds the parts of means to the sums of their names."""
    for name, mean in means.items():
        sums[name] = sums[name] + mean if name in sums else mean


def mean_values(sums: Mapping[str, Mean]) -> dict[str, float]:
    """The means of those names that count something."""
    return {name: float(mean.total) / float(mean.weight) for name, mean in sums.items() if float(mean.weight)}


class FlopCounter:
    """Floating-point operations of forward passes: `flops` as executed and `flops_dense` as if nothing had been
    skipped, each per token."""

    def __init__(self) -> None:
        self._tokens, self._dense = 0, 0.0
        self._skipped: list[Tensor | float] = []

    def add(self, tokens: int, flops: float, skipped: Tensor | float) -> None:
        """Adds a pass over `tokens` at `flops` per token, of which `skipped` in all were not executed."""
        self._tokens += tokens
        self._dense += flops * tokens
        self._skipped.append(skipped)

    def sums(self) -> dict[str, float]:
        """The tokens, and the operations as if nothing had been skipped and of those the skipped ones."""
        skipped = math.fsum(map(float, self._skipped))
        return {"tokens": float(self._tokens), "dense": self._dense, "skipped": skipped}

    def values(self) -> dict[str, float]:
        return flop_values(**self.sums())


def flop_values(tokens: float, dense: float, skipped: float) -> dict[str, float]:
    """Floating-point operations per token, as executed and as if nothing had been skipped."""
    tokens = max(tokens, 1.0)
    return {"flops": (dense - skipped) / tokens, "flops_dense": dense / tokens}

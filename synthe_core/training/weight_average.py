"""A running average of the weights, which is evaluated and saved in place of them (Polyak & Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import trainable_parameters
from synthe_core.model.sharded_tensors import exchange, local, shard_of


class WeightAverage:
    """m = d m + (1 - d) w after every step, with d = min(decay, (1 + n) / (10 + n)) so that the start is forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = trainable_parameters(model)
        self.tensors = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Adds the weights after step number `steps`."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        current = [local(p.detach()) for p in self._parameters.values()]
        torch._foreach_lerp_(list(map(local, self.tensors.values())), current, 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            local(tensor).copy_(shard_of(tensors[name], tensor))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the average as its weights; only shards are copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            self.tensors[name] = exchange(parameter, self.tensors[name])

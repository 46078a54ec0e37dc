"""One pass over several tokens of each of some sequences, and the state of each after any of them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any, Protocol

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.adapters.lora import Adapter
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.speculation.fused_pass import FusedPass
from synthe_core.layers.adapter_batch import use_adapters
from synthe_core.model.language_model import ModelState


class TokensPass(Protocol):
    """hidden [N, D] and signals [N] of all tokens, sequence by sequence."""

    hidden: Tensor
    signals: Mapping[str, Tensor]

    def has_state(self, index: int, count: int) -> bool:
        """Whether the state of sequence `index` after its first `count` tokens costs no pass."""

    def state(self, index: int, count: int) -> ModelState:
        """That state."""


class PlainPass:
    """The model's own pass, rows padded to the longest. Its numbers are those of single tokens up to rounding.

    A memory that was written to cannot be cut back: the state after a part of the tokens is computed from the state
    before them.
    """

    def __init__(
        self,
        model: LoadedModel,
        tokens: Many[Many[int]],
        befores: Many[ModelState],
        adapters: Many[Adapter | None],
    ) -> None:
        self._model, self._tokens, self._befores, self._adapters = model, tokens, befores, adapters
        counts = [len(each) for each in tokens]
        padded = torch.zeros(len(tokens), max(counts), dtype=torch.int64)
        for row, each in enumerate(tokens):
            padded[row, : len(each)] = torch.tensor(each)
        is_ragged = min(counts) < max(counts)
        lengths = torch.tensor(counts, device=model.device) if is_ragged else None
        joined = states.join(befores) if len(befores) > 1 else befores[0]
        with use_adapters(model.adapter_batch(adapters)):
            output = model.forward(padded.to(model.device), joined, lengths)
        self._after = output.state
        real = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        index = real.flatten().nonzero()[:, 0].to(model.device)
        self.hidden = output.hidden.flatten(0, 1).index_select(0, index)
        self.signals: Mapping[str, Tensor] = {
            name: value.flatten(0, 1).index_select(0, index) for name, value in output.signals.items()
        }

    def has_state(self, index: int, count: int) -> bool:
        return count in (0, len(self._tokens[index]))

    def state(self, index: int, count: int) -> ModelState:
        if count == 0:
            return self._befores[index]
        tokens = self._tokens[index]
        if count == len(tokens):
            after: Any = self._after
            if len(self._tokens) > 1:
                after = states.take(after, torch.tensor([index], device=self._model.device))
            return _narrowed(after, self._model) if len(self._tokens) > 1 else after
        part = torch.tensor([list(tokens[:count])], device=self._model.device)
        with torch.inference_mode(), self._model.activate(self._adapters[index]):
            return self._model.forward(part, self._befores[index]).state


def run_pass(
    model: LoadedModel, tokens: Many[Many[int]], befores: Many[ModelState], adapters: Many[Adapter | None]
) -> TokensPass:
    """A pass within `model.activate`, from states of one row each."""
    if not model.has_exact_passes:
        return PlainPass(model, tokens, befores, adapters)
    each = (adapter for adapter, own in zip(adapters, tokens, strict=True) for _ in own)
    with use_adapters(model.adapter_batch(each)):
        return FusedPass(model.fused_decoder(), tokens, befores)


def _narrowed(state: Any, model: LoadedModel) -> Any:
    """A state of one row without the empty front of windows that longer rows have widened."""
    longest = int(state.position[0])
    grows = iter([leaf.dim() > 1 and leaf.shape[1] == 0 for _, leaf in states.named_leaves(model.model.init_state(1))])

    def cut(leaf: Tensor) -> Tensor:
        excess = leaf.shape[1] - longest if next(grows) else 0
        return leaf if excess <= 0 else leaf[:, excess:].clone()

    return states.map_leaves(cut, state)

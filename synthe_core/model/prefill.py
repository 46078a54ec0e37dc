"""Reading long texts with a model in chunks, which bounds the memory of a pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.model.language_model import LanguageModel, ModelState

PREFILL = 2048
"""Tokens of a chunk."""


class PassLimits(NamedTuple):
    """Of a pass: `tokens` of all rows, `chunk` of each, and bytes of `states` together."""

    tokens: int
    chunk: int
    states: int


def pass_limits(model: LanguageModel, tokens: int, states: int) -> PassLimits:
    """So many tokens and bytes of states, or as many as there is room for where a model is within a given memory."""
    if model.offload is None:
        return PassLimits(tokens, PREFILL, states)
    plan = model.offload.plan
    return PassLimits(min(tokens, plan.prefill_tokens), min(PREFILL, plan.prefill_tokens), min(states, plan.states))


@torch.no_grad()
def prefill(
    model: LanguageModel, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, ModelState]:
    """Logits [B, V] after the last of `tokens` int64 [B, T], and the state there. Rows are right-padded to T where
    `lengths` [B] is given."""
    logits: Tensor | None = None
    for start in range(0, tokens.shape[1], PREFILL):
        chunk = tokens[:, start : start + PREFILL]
        left = None if lengths is None else (lengths - start).clamp(0, chunk.shape[1])
        new_logits, state = model.next_logits(chunk, state, left)
        logits = new_logits if logits is None or left is None else torch.where((left > 0)[:, None], new_logits, logits)
    if logits is None or state is None:
        raise InputError("nothing to read: the prompt is empty", "give at least one token, or a saved session")
    return logits, state

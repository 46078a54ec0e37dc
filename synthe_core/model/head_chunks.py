"""Logits of many places without holding all of them in memory."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from synthe_core.model.language_model import LanguageModel

MAX_LOGITS = 1 << 24  # numbers in memory at a time


def places_per_chunk(model: LanguageModel, rows: int = 1) -> int:
    """How many places of `rows` sequences have at most MAX_LOGITS logits together; 1 at least."""
    return max(1, MAX_LOGITS // (rows * model.vocab))


def logits_in_chunks(model: LanguageModel, hidden: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits float32 [B, t, V] of hidden [B, T, D] with tokens [B, t] of `tokens` [B, T], in chunks along T."""
    size = places_per_chunk(model, hidden.shape[0])
    for part, part_tokens in zip(hidden.split(size, 1), tokens.split(size, 1), strict=True):
        yield model.head(part).float(), part_tokens

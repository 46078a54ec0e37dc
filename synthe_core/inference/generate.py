"""Tokens from a model: prefill in pieces, then one token a step. Cost and memory per token are those of the state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.inference.sampler import SamplingState, sample
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.model.language_model import LanguageModel, ModelState

PREFILL = 2048  # prompt tokens a pass: bounds memory for prompts of any length


@torch.no_grad()
def prefill(
    model: LanguageModel, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, ModelState]:
    """Reads `tokens` int64 [B, T] (right-padded to T where `lengths` [B] is given): logits [B, V] and the state."""
    logits: Tensor | None = None
    for start in range(0, tokens.shape[1], PREFILL):
        piece = tokens[:, start : start + PREFILL]
        left = None if lengths is None else (lengths - start).clamp(0, piece.shape[1])
        fresh, state = model.next_logits(piece, state, left)
        logits = fresh if logits is None or left is None else torch.where((left > 0)[:, None], fresh, logits)
    if logits is None or state is None:
        raise InputError("nothing to read: the prompt is empty", "give at least one token, or a saved session")
    return logits, state


class Generation:
    """A batch of sequences being continued; iterating yields int64 [B], one new token a row.

    live:    bool [B], False for rows that have ended: they are frozen, and what is yielded for them means nothing.
    state:   has read everything but `pending`.
    pending: int64 [B], each row's newest token. The pair is all that is needed to go on later.

    `first` bool [B, V] restricts each row's first token to those that are True. Every row draws from a generator seeded
    with `seed` plus its index, or with its own of a list of seeds, and so does not depend on the rows beside it.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: SamplingParams | None = None,
        seed: int | Sequence[int] = 0,
        end: int | None = None,
        state: ModelState | None = None,
        first: Tensor | None = None,
    ) -> None:
        self.model, self.sampling, self.end = model, sampling or SamplingParams(), end
        device = model.embedding.weight.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        if int(lengths.min()) == 0:
            raise InputError("nothing to read: the prompt is empty", "give at least one token, or a saved session")
        tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64, device=device)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(list(prompt), device=device)
        ragged = bool((lengths != lengths.max()).any())
        self._logits, self.state = prefill(model, tokens, state, lengths if ragged else None)
        if first is not None:
            self._logits = self._logits.masked_fill(~first.to(device), -torch.inf)
        seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
        self._generators = [torch.Generator(device).manual_seed(each) for each in seeds]
        self._seen = _seen(tokens, lengths, model.vocab) if self.sampling.repetition_penalty != 1.0 else None
        self._read = True
        self.pending = tokens.gather(1, lengths[:, None] - 1)[:, 0]
        self.live = torch.ones(len(prompts), dtype=torch.bool, device=device)

    def stop(self, row: int) -> None:
        """Ends a row."""
        self.live[row] = False

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets all rows but these, which are numbered anew in the order given."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.pending.device)
        self.state = states.take(self.state, index)
        self._logits, self.pending, self.live = (t[index] for t in (self._logits, self.pending, self.live))
        self._generators = [self._generators[row] for row in rows]
        self._seen = None if self._seen is None else self._seen[index]

    def __iter__(self) -> Iterator[Tensor]:
        while bool(self.live.any()):
            yield self.step()

    @torch.no_grad()
    def step(self) -> Tensor:
        """One more token for every live row."""
        if not self._read:
            lengths = None if bool(self.live.all()) else self.live.long()
            self._logits, self.state = self.model.next_logits(self.pending[:, None], self.state, lengths)
        rows = [
            SamplingState(self.sampling, generator, None if self._seen is None else self._seen[row])
            for row, generator in enumerate(self._generators)
        ]
        chosen = torch.tensor(sample(self._logits.float(), rows), device=self.pending.device)
        self.pending = torch.where(self.live, chosen, self.pending)
        self._read = False
        if self._seen is not None:
            self._seen.scatter_(1, self.pending[:, None], True)
        if self.end is not None:
            self.live = self.live & (self.pending != self.end)
        return self.pending


def _seen(tokens: Tensor, lengths: Tensor, vocab: int) -> Tensor:
    real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    seen = torch.zeros(tokens.shape[0], vocab, dtype=torch.int64, device=tokens.device)
    return seen.scatter_add_(1, tokens, real.long()) > 0

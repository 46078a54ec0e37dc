"""How the next token is chosen from logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.layers.learner import Spec


class Sampling(Spec):
    """Temperature 0 is greedy. The filters apply in the order of the fields; 0, 1 and None switch each off."""

    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100, description="divides the logits of tokens already seen (Keskar 2019)"
    )
    frequency_penalty: float = Field(0.0, description="is taken from a token's logit each time that it was written")
    presence_penalty: float = Field(0.0, description="is taken from the logit of a token that was written at all")
    logit_bias: Mapping[int, float] = Field({}, description="token -> what is added to its logit; -100 forbids it")
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0, description="keep the k likeliest")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest that together reach p (Holtzman 2019)")
    min_p: float = Field(0.0, ge=0, lt=1, description="keep those at least this fraction as likely as the likeliest")

    @property
    def counts(self) -> bool:
        """Whether it matters how often a token was written."""
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @property
    def plain(self) -> bool:
        """Whether the logits are chosen from as they are, but for temperature and filters."""
        return self.repetition_penalty == 1.0 and not self.counts and not self.logit_bias


def choose(
    logits: Tensor,
    sampling: Sampling | Sequence[Sampling],
    seen: Tensor | None,
    generators: Sequence[torch.Generator],
    written: Tensor | None = None,
) -> Tensor:
    """One token a row, int64 [B], from logits [B, V].

    sampling: of all rows, or of each. seen bool [B, V]: tokens that the repetition penalty applies to. written [B, V]:
    how often each token was written, for the penalties that count. Every row draws from its own generator, so that
    what it says does not depend on the rows beside it.
    """
    rows = [sampling] * logits.shape[0] if isinstance(sampling, Sampling) else list(sampling)
    logits = _penalised(logits.float(), rows, seen, written)
    drawn = [row for row, one in enumerate(rows) if one.temperature > 0]
    if not drawn:
        return logits.argmax(-1)
    some = len(drawn) < len(rows)
    index = torch.tensor(drawn, device=logits.device) if some else None
    warm = logits if index is None else logits.index_select(0, index)
    given = [rows[row] for row in drawn]
    probabilities = _filtered(_warmed(warm, [one.temperature for one in given]), given).softmax(-1)
    picks = [torch.multinomial(p, 1, generator=generators[row]) for p, row in zip(probabilities, drawn, strict=True)]
    picked = torch.cat(picks)
    return picked if index is None else logits.argmax(-1).index_copy(0, index, picked)


def _penalised(logits: Tensor, rows: list[Sampling], seen: Tensor | None, written: Tensor | None) -> Tensor:
    """Rows that ask for nothing stay what they are, to the bit."""
    if all(one.plain for one in rows):
        return logits
    if seen is not None and any(one.repetition_penalty != 1.0 for one in rows):
        penalty = _column(logits, [one.repetition_penalty for one in rows])
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if written is not None and any(one.counts for one in rows):
        often = _column(logits, [one.frequency_penalty for one in rows])
        once = _column(logits, [one.presence_penalty for one in rows])
        logits = logits - often * written - once * (written > 0)
    if any(one.logit_bias for one in rows):
        logits = logits.clone()
        for row, one in enumerate(rows):
            if one.logit_bias:
                at = torch.tensor(list(one.logit_bias), device=logits.device)
                logits[row, at] += torch.tensor(list(one.logit_bias.values()), device=logits.device)
    return logits


def _warmed(logits: Tensor, temperatures: list[float]) -> Tensor:
    """Against the likeliest, so that a temperature next to nothing is greedy rather than infinite."""
    divisor = _column(logits, temperatures).clamp(min=torch.finfo(logits.dtype).tiny)
    return (logits - logits.amax(-1, keepdim=True)) / divisor


def _filtered(logits: Tensor, rows: list[Sampling]) -> Tensor:
    vocab = logits.shape[-1]
    kept = [one.top_k if 0 < one.top_k < vocab else 0 for one in rows]
    if any(kept):
        values = logits.topk(max(kept), dim=-1).values
        last = torch.tensor([max(k, 1) - 1 for k in kept], device=logits.device)[:, None]
        threshold = values.gather(1, last).masked_fill(_column(logits, kept) == 0, -torch.inf)
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if any(one.top_p < 1 for one in rows):
        ordered, order = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(-1)
        # a row that keeps all: what comes before any token is less than 2, whatever the rounding
        most = _column(logits, [one.top_p if one.top_p < 1 else 2.0 for one in rows])
        beyond = share.cumsum(-1) - share >= most
        beyond[:, 0] = False  # also where top_p is less than float32 can say
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    if any(one.min_p > 0 for one in rows):
        probabilities = logits.softmax(-1)
        floor = _column(logits, [one.min_p for one in rows]) * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < floor, -torch.inf)
    return logits


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]

"""How the next token is chosen from logits."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.learner import Spec


class Sampling(Spec):
    """Temperature 0 is greedy. The filters apply in the order of the fields; 0, 1 and None switch each off."""

    repetition_penalty: float = Field(1.0, gt=0, description="divides the logits of tokens already seen (Keskar 2019)")
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0, description="keep the k likeliest")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest that together reach p (Holtzman 2019)")
    min_p: float = Field(0.0, ge=0, lt=1, description="keep those at least this fraction as likely as the likeliest")


def choose(logits: Tensor, sampling: Sampling, seen: Tensor | None, generators: list[torch.Generator]) -> Tensor:
    """One token a row, int64 [B], from logits [B, V].

    seen bool [B, V]: tokens that the repetition penalty applies to. Every row draws from its own generator, so that
    what it says does not depend on the rows beside it.
    """
    logits = logits.float()
    if seen is not None and sampling.repetition_penalty != 1.0:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = _filtered(logits / sampling.temperature, sampling).softmax(-1)
    rows = zip(probabilities, generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])


def _filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    if 0 < sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = (before >= sampling.top_p).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    if sampling.min_p > 0:
        probabilities = logits.softmax(-1)
        floor = sampling.min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < floor, -torch.inf)
    return logits

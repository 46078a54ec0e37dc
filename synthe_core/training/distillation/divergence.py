"""The divergence of a student's predictions from a teacher's, over all tokens or the teacher's most likely ones."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Direction = Literal["forward", "reverse"]


class Targets(NamedTuple):
    """A teacher's predictions at temperature τ: log p [..., V], or those of its k most likely tokens [..., k] and their
    `ids` int64 [..., k], the most likely first. The other tokens are then one event with the rest of the probability.
    """

    log_p: Tensor
    ids: Tensor | None = None


def targets_of(logits: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Targets:
    """The predictions of logits [..., V]."""
    log_p = (logits / temperature).log_softmax(-1)
    return Targets(log_p) if top_k is None or top_k >= logits.shape[-1] else Targets(*log_p.topk(top_k, dim=-1))


def divergence(logits: Tensor, targets: Targets, temperature: float = 1.0, direction: Direction = "forward") -> Tensor:
    """τ² KL of a student's logits [..., V] and a teacher's predictions, in nats, for each place [...].

        forward   Σ p log(p / q)
        reverse   Σ q log(q / p)

    q = softmax(logits / τ); τ² gives gradients of the same size at every temperature. Over k + 1 events, the k most
    likely tokens and all others together, both are lower bounds of those over all tokens.

    Sources: Hinton et al. 2015, "Distilling the knowledge in a neural network"; reverse: Gu et al. 2024, "MiniLLM".
    """
    log_q = (logits / temperature).log_softmax(-1)
    log_p = targets.log_p
    if targets.ids is not None:
        log_q = _with_rest(log_q.gather(-1, targets.ids))
        log_p = _with_rest(log_p)
    first, second = (log_p, log_q) if direction == "forward" else (log_q, log_p)
    return temperature**2 * (first.exp() * (first - second)).sum(-1)


def _with_rest(log_p: Tensor) -> Tensor:
    """log p [..., k] of some events, and that of none of them: [..., k + 1]. The rest is at least ε."""
    least = torch.finfo(log_p.dtype).eps
    rest = (1 - log_p.exp().sum(-1, keepdim=True)).clamp_min(least).log()
    return torch.cat([log_p, rest], -1)

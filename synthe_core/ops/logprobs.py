"""Log-probabilities of tokens, in nats, from logits."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MaxLogprob(NamedTuple):
    """The most likely token of each place, int64 [...], and its log-probability, float32 [...]."""

    logprob: Tensor
    token: Tensor


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[token], float32 [...], of logits [..., V] and tokens int64 [...]."""
    logits = logits.float()
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


def max_logprob(logits: Tensor) -> MaxLogprob:
    """The most likely token under logits [..., V], and its log-probability."""
    logits = logits.float()
    top, token = logits.max(-1)
    return MaxLogprob(top - logits.logsumexp(-1), token)

"""Log-likelihoods of continuations under a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.evaluation.prefix_tree import Node, build_tree
from synthe_core.evaluation.reading import Reader
from synthe_core.model.head_chunks import places_per_chunk
from synthe_core.ops.logprobs import token_logprobs


class Continuation(NamedTuple):
    """Tokens to be scored after a context of one token or more."""

    context: Sequence[int]
    continuation: Sequence[int]


class Score(NamedTuple):
    """log p(continuation | context) in nats, and whether greedy decoding gives the continuation."""

    loglikelihood: float
    greedy: bool


class _PartialScore:
    """The score of a request, summed along its path through the prefix tree."""

    def __init__(self, request: Continuation) -> None:
        self.sequence = [*request.context, *request.continuation]
        self.first = len(request.context) - 1  # the place that predicts the first scored token
        self.total, self.greedy, self.remaining = 0.0, True, len(request.continuation)


def score(reader: Reader, requests: Sequence[Continuation]) -> Iterator[tuple[int, Score]]:
    """Yields each request's index and score as soon as it is complete, in the order of reading."""
    scores = [_PartialScore(request) for request in requests]
    unscored = [index for index, each in enumerate(scores) if each.remaining]
    reader.counts.requested += sum(len(scores[index].sequence) - 1 for index in unscored)
    for index, each in enumerate(scores):
        if not each.remaining:
            yield index, Score(0.0, True)
    for read in reader.read(build_tree([scores[index].sequence[:-1] for index in unscored])):
        targets = [
            (row, place - node.start - read.first, unscored[member], scores[unscored[member]].sequence[place + 1])
            for row, node in enumerate(read.nodes)
            for member in node.members
            for place in _places(node, scores[unscored[member]], read.first, read.hidden.shape[1])
        ]
        for start in range(0, len(targets), step := places_per_chunk(reader.model)):
            rows, times, indices, tokens = zip(*targets[start : start + step], strict=True)
            logprobs, greedy = _logprobs(reader, read.hidden[list(rows), list(times)], list(tokens))
            for index, logprob, is_greedy in zip(indices, logprobs, greedy, strict=True):
                each = scores[index]
                each.total += logprob
                each.greedy = each.greedy and is_greedy
                each.remaining -= 1
                if not each.remaining:
                    yield index, Score(each.total, each.greedy)


@torch.no_grad()
def _logprobs(reader: Reader, hidden: Tensor, tokens: list[int]) -> tuple[list[float], list[bool]]:
    """The log-probability in nats of each token after hidden [N, D], and whether it is the most likely one."""
    logits = reader.model.head(hidden).float()
    targets = torch.tensor(tokens, device=logits.device)
    return token_logprobs(logits, targets).tolist(), (logits.argmax(-1) == targets).tolist()


def _places(node: Node, each: _PartialScore, first: int, length: int) -> range:
    """The places of the sequence, in this piece of the node, that predict a scored token."""
    begin = node.start + first
    return range(max(begin, each.first), min(begin + length, node.end))

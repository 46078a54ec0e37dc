"""How likely a model finds continuations of contexts, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.evaluation.prefix_tree import Node, grow
from synthe_core.evaluation.reading import Reader

LOGITS = 1 << 24  # held at a time


class Continuation(NamedTuple):
    """Tokens after others; `context` has one at least, and only the tokens of `continuation` are scored."""

    context: Sequence[int]
    continuation: Sequence[int]


class Score(NamedTuple):
    """log p(continuation | context) in nats, and whether the model would have written it with temperature 0."""

    loglikelihood: float
    greedy: bool


class _Open:
    """A request while its score adds up along its path through the tree."""

    def __init__(self, request: Continuation) -> None:
        self.sequence = [*request.context, *request.continuation]
        self.first = len(request.context) - 1  # the place from which the first scored token is predicted
        self.total, self.greedy, self.left = 0.0, True, len(request.continuation)


def score(reader: Reader, requests: Sequence[Continuation]) -> Iterator[tuple[int, Score]]:
    """Each request's number and score, as soon as it is known: in the order in which they are read."""
    todo = [_Open(request) for request in requests]
    reader.effort.asked += sum(len(each.sequence) - 1 for each in todo if each.left)
    for index, each in enumerate(todo):
        if not each.left:
            yield index, Score(0.0, True)
    wanted = [index for index, each in enumerate(todo) if each.left]
    for read in reader.read(grow([todo[index].sequence[:-1] for index in wanted])):
        asked = [
            (row, place - node.start - read.first, wanted[member], todo[wanted[member]].sequence[place + 1])
            for row, node in enumerate(read.nodes)
            for member in node.members
            for place in _places(node, todo[wanted[member]], read.first, read.hidden.shape[1])
        ]
        for part in range(0, len(asked), step := max(1, LOGITS // reader.model.vocab)):
            rows, times, indices, targets = zip(*asked[part : part + step], strict=True)
            told = _judged(reader, read.hidden[list(rows), list(times)], list(targets))
            for index, loglikelihood, likeliest in zip(indices, *told, strict=True):
                each = todo[index]
                each.total += loglikelihood
                each.greedy = each.greedy and likeliest
                each.left -= 1
                if not each.left:
                    yield index, Score(each.total, each.greedy)


@torch.no_grad()
def _judged(reader: Reader, hidden: Tensor, targets: list[int]) -> tuple[list[float], list[bool]]:
    """Of each row of hidden [N, D], the target's log-probability in nats and whether it is the likeliest token."""
    logits = reader.model.head(hidden).float()
    wanted = torch.tensor(targets, device=logits.device)
    found = logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1)
    return found.tolist(), (logits.argmax(-1) == wanted).tolist()


def _places(node: Node, each: _Open, first: int, length: int) -> range:
    """The places of the sequence, in this piece of the node, from which a scored token is predicted."""
    begin = node.start + first
    return range(max(begin, each.first), min(begin + length, node.end))

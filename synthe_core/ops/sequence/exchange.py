"""What ranks with parts of a sequence send each other, with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.execution import active_context
from synthe_core.hardware.sequence import SequenceRanks

Element = tuple[Tensor, ...]
"""A map from the state before some tokens to the state after them, in tensors of the same shapes on all ranks."""


@contextmanager
def alone() -> Iterator[None]:
    """Within the block operators run over the tokens of this rank, from the states that they are given."""
    context = active_context()
    if context.sequence is None:
        yield
        return
    with replace(context, sequence=None).activate():
        yield


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ranks: SequenceRanks, by: int, lowest: int, count: int, anchor: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        first, own = tensors[:count], tensors[count:]
        ctx.gives, ctx.takes = lowest <= ranks.rank < ranks.size - by, ranks.rank - by >= lowest

        def run(tag: int) -> list[Tensor]:
            if ctx.gives:
                ranks.send(own, ranks.rank + by, tag)
            return ranks.receive(own, ranks.rank - by, tag) if ctx.takes else []

        ctx.tag, received = ranks.exchange(run)
        ctx.ranks, ctx.by, ctx.count = ranks, by, count
        ctx.like = [torch.empty(each.shape, dtype=each.dtype, device="meta") for each in own]
        return tuple(each.clone() for each in (received if ctx.takes else first))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ranks, tag = ctx.ranks, ctx.tag + 1
        if ctx.takes:
            ranks.send(grads, ranks.rank - ctx.by, tag)
        own: Sequence[Tensor | None] = [None] * ctx.count
        if ctx.gives:
            like = [each.new_empty(part.shape) for each, part in zip(grads, ctx.like, strict=True)]
            own = ranks.receive(like, ranks.rank + ctx.by, tag)
        first = [None] * ctx.count if ctx.takes else grads
        return None, None, None, None, None, *first, *own


def shift(ranks: SequenceRanks, by: int, own: Element, first: Element, lowest: int = 0) -> Element:
    """`own` of the rank `by` places before; `first` where there is none from rank `lowest` on."""
    anchor = torch.zeros((), requires_grad=True)  # every rank takes part in the backward pass
    return _Shift.apply(ranks, by, lowest, len(own), anchor, *first, *own)


def exclusive_scan(
    ranks: SequenceRanks, compose: Callable[[Element, Element], Element], own: Element, identity: Element
) -> Element:
    """compose(e_0, e_1, ..., e_{rank-1}) of the elements that the ranks before have, in 1 + log2(size - 1) rounds.

    compose(earlier, later) is associative. The last rank's own element is not read. Source: Hillis & Steele 1986.
    """
    element = shift(ranks, 1, own, identity)
    by = 1
    while by < ranks.size - 1:
        element = compose(shift(ranks, by, element, identity, lowest=1), element)
        by *= 2
    return element

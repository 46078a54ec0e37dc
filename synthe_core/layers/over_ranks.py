"""A learner over a sequence that is cut over ranks: its operators compose what they remember, or its state is passed on
from rank to rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.errors import WorkError
from synthe_core.hardware.execution import active_context
from synthe_core.hardware.sequence import SequenceRanks
from synthe_core.layers.learner import Learner, Pass
from synthe_core.ops import sequence  # noqa: F401  gives operators their way over ranks
from synthe_core.ops.sequence.exchange import alone
from synthe_core.state import map_leaves, named_leaves

LAYOUT = 512
"""Numbers in which a rank states the shapes of what it passes on, once."""
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)


def run_learner(learner: Any, x: Tensor, state: Any, ctx: Pass) -> tuple[Tensor, Any]:
    """`learner(x, state, ctx)`; where the active context cuts sequences over ranks, x [B, T, D] are this rank's tokens
    and `state` is that before the whole sequence.

    A learner that composes (`Learner.composes`) exchanges maps of states in its operators, all ranks at once. Any other
    waits for the state of the rank before: ranks work on different blocks at a time.
    """
    ranks = active_context().sequence
    if ranks is None or learner.composes:
        return learner(x, state, ctx)
    with alone():
        if not any(leaf.numel() for _, leaf in named_leaves(learner.init_state(1, device="meta"))):
            return learner(x, state, ctx)  # an MLP
        return _relay(ranks, learner, x, state, ctx)


def _relay(ranks: SequenceRanks, learner: Learner[Any], x: Tensor, state: Any, ctx: Pass) -> tuple[Tensor, Any]:
    state = learner.init_state(x.shape[0], device=x.device) if state is None else state
    key = (torch.is_grad_enabled(), ctx.path, tuple(x.shape))
    tag, received = ranks.exchange(lambda tag: _receive(ranks, key, x.device, tag))
    anchor = torch.zeros((), requires_grad=True)  # every rank takes part in the backward pass
    if received is not None:
        x, *leaves = _Received.apply(ranks, tag, received.grads, anchor, x, *received.leaves)
        values = iter(leaves)
        state = map_leaves(lambda _: next(values), state)
    y, after = learner(x, state, ctx)
    leaves = [leaf for _, leaf in named_leaves(after)]
    grads = [leaf.requires_grad for leaf in leaves]
    ranks.exchange(lambda _: _send(ranks, key, leaves, tag))
    if ranks.rank + 1 < ranks.size and any(grads):
        y = _Sent.apply(ranks, tag, grads, y, *leaves)
    return y, after


class _State(NamedTuple):
    """The leaves of a state, and which of them carry a gradient."""

    leaves: list[Tensor]
    grads: list[bool]


def _receive(ranks: SequenceRanks, key: Any, device: torch.device, tag: int) -> _State | None:
    """The state before this rank's tokens; None on rank 0."""
    if not ranks.rank:
        return None
    if ("from", key) not in ranks.layouts:
        (numbers,) = ranks.receive([torch.empty(LAYOUT, dtype=torch.int64, device=device)], ranks.rank - 1, tag)
        ranks.layouts["from", key] = _read_layout(numbers.tolist())
    layout = ranks.layouts["from", key]
    like = [torch.empty(shape, dtype=kind, device=device) for shape, kind, _ in layout]
    return _State(ranks.receive(like, ranks.rank - 1, tag), [grad for *_, grad in layout])


def _send(ranks: SequenceRanks, key: Any, leaves: Sequence[Tensor], tag: int) -> None:
    if ranks.rank + 1 == ranks.size:
        return
    if ("to", key) not in ranks.layouts:
        ranks.layouts["to", key] = True
        ranks.send([_layout(leaves)], ranks.rank + 1, tag)
    ranks.send(leaves, ranks.rank + 1, tag)


def _layout(leaves: Sequence[Tensor]) -> Tensor:
    numbers = [len(leaves)]
    for leaf in leaves:
        numbers += [TYPES.index(leaf.dtype), int(leaf.requires_grad), leaf.dim(), *leaf.shape]
    if len(numbers) > LAYOUT:
        raise WorkError("a state has too many tensors to be passed on from process to process")
    return torch.tensor(numbers + [0] * (LAYOUT - len(numbers)), device=leaves[0].device)


def _read_layout(numbers: Sequence[int]) -> list[tuple[tuple[int, ...], torch.dtype, bool]]:
    layout, at = [], 1
    for _ in range(numbers[0]):
        kind, grad, dims = numbers[at : at + 3]
        layout.append((tuple(numbers[at + 3 : at + 3 + dims]), TYPES[kind], bool(grad)))
        at += 3 + dims
    return layout


class _Received(torch.autograd.Function):
    """x and the leaves of a state; going back, the gradients of the leaves are sent to the rank before."""

    @staticmethod
    def forward(
        ctx: Any, ranks: SequenceRanks, tag: int, grads: list[bool], anchor: Tensor, x: Tensor, *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.tag, ctx.grads = ranks, tag, grads
        own = [leaf.clone() for leaf in leaves]
        ctx.mark_non_differentiable(*(leaf for leaf, grad in zip(own, grads, strict=True) if not grad))
        return (x.view_as(x), *own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, x_grad: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if sent := [each for each, needed in zip(grads, ctx.grads, strict=True) if needed]:
            ctx.ranks.send(sent, ctx.ranks.rank - 1, ctx.tag + 1)
        return None, None, None, None, x_grad, *(None for _ in grads)


class _Sent(torch.autograd.Function):
    """y; going back, the gradients of the leaves that the next rank got come from there."""

    @staticmethod
    def forward(ctx: Any, ranks: SequenceRanks, tag: int, grads: list[bool], y: Tensor, *leaves: Tensor) -> Tensor:
        ctx.ranks, ctx.tag, ctx.grads = ranks, tag, grads
        ctx.like = [(leaf.shape, leaf.dtype) for leaf, needed in zip(leaves, grads, strict=True) if needed]
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
        like = [torch.empty(shape, dtype=kind, device=y_grad.device) for shape, kind in ctx.like]
        grads = iter(ctx.ranks.receive(like, ctx.ranks.rank + 1, ctx.tag + 1))
        return None, None, None, y_grad, *(next(grads) if needed else None for needed in ctx.grads)

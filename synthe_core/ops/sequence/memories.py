"""Memories that are matrices: each rank maps its first state linearly to its last, S' = A S + F.

F is what its tokens make of an empty memory. A is one decay, one a key channel, or a product of K x K matrices, which
is what they make of the identity. Ranks compose these maps, and each then reads its tokens from its own first state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware.sequence import SequenceRanks
from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.delta_rule_error import delta_rule_error
from synthe_core.ops.gated_linear_attention import gated_linear_attention
from synthe_core.ops.generalized_delta_rule import generalized_delta_rule
from synthe_core.ops.kda import kda
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.mlstm import EMPTY_SCALE, mlstm
from synthe_core.ops.sequence.exchange import Element, alone, exclusive_scan


def compose_matrices(earlier: Element, later: Element) -> Element:
    """(A₂ A₁, A₂ F₁ + F₂)."""
    (first, added), (then, own) = earlier, later
    return then @ first, then @ added + own


def compose_decays(earlier: Element, later: Element) -> Element:
    """(a₁ a₂, a₂ F₁ + F₂), with decays that broadcast over F."""
    (first, added), (then, own) = earlier, later
    return first * then, then * added + own


def matrices_before(
    ranks: SequenceRanks, after: Callable[[Tensor, Tensor], Tensor], k: Tensor, v: Tensor, state: Tensor | None
) -> Tensor:
    """The memory before this rank's tokens, [B, H, K, V].

    after(values, first): the memory after the tokens, where they write these values instead, from a first one. The
    values have K more columns, all zero, and the first memory the identity there.
    """
    batch, heads, key, value = v.shape[0], v.shape[2], k.shape[-1], v.shape[-1]
    unit = torch.eye(key, dtype=v.dtype, device=v.device).expand(batch, heads, key, key)
    empty = v.new_zeros(batch, heads, key, value)
    own = identity = (unit, empty)
    if ranks.rank + 1 < ranks.size:
        with alone():
            memory = after(F.pad(v, (0, key)), torch.cat([empty, unit], -1))
        added, transition = memory.split([value, key], -1)
        own = (transition, added)
    transition, added = exclusive_scan(ranks, compose_matrices, own, identity)
    return added if state is None else transition @ state + added


def decayed_before(
    ranks: SequenceRanks, after: Callable[[], Tensor], decay: Tensor, shape: tuple[int, ...], state: Tensor | None
) -> Tensor:
    """The memory of this `shape` before this rank's tokens, which decay it by `decay` and leave `after()` in an empty
    one."""
    empty = decay.new_zeros(shape)
    own = identity = (torch.ones_like(decay), empty)
    if ranks.rank + 1 < ranks.size:
        with alone():
            own = (decay, after())
    decay, added = exclusive_scan(ranks, compose_decays, own, identity)
    return added if state is None else decay * state + added


def _matrix_rule(rule: Any) -> Callable[..., Any]:
    """A delta rule whose arguments are queries, keys, values, others and the state."""

    def run(ranks: SequenceRanks, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
        *gates, state = rest

        def after(values: Tensor, first: Tensor) -> Tensor:
            return rule(q, k, values, *gates, first)[1]

        before = matrices_before(ranks, after, k, v, state)
        with alone():
            return rule(q, k, v, *gates, before)

    return run


for _rule in (delta_rule, delta_rule_error, kda, generalized_delta_rule):
    _rule.over_ranks(_matrix_rule(_rule))


@linear_attention.over_ranks
def _(
    ranks: SequenceRanks,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    decay = torch.ones_like(beta[:, 0]) if log_decay is None else log_decay.sum(1).exp()
    shape = (v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])

    def after() -> Tensor:
        return linear_attention(q, k, v, beta, log_decay, None)[1]

    before = decayed_before(ranks, after, decay[..., None, None], shape, state)
    with alone():
        return linear_attention(q, k, v, beta, log_decay, before)


@gated_linear_attention.over_ranks
def _(
    ranks: SequenceRanks, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = (v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])

    def after() -> Tensor:
        return gated_linear_attention(q, k, v, log_decay, None)[1]

    before = decayed_before(ranks, after, log_decay.sum(1).exp()[..., None], shape, state)
    with alone():
        return gated_linear_attention(q, k, v, log_decay, before)


def compose_scaled(earlier: Element, later: Element) -> Element:
    """Of memories over exp(scale): the new scale is the larger of the two, and carries no gradient."""
    (first, added, low), (then, own, high) = earlier, later
    scale = torch.maximum(then + low, high).detach()
    old, new = ((each - scale).exp()[..., None, None] for each in (then + low, high))
    return first + then, old * added + new * own, scale


@mlstm.over_ranks
def _(
    ranks: SequenceRanks,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_input: Tensor,
    log_forget: Tensor,
    memory: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    none, fresh = torch.zeros_like(memory), torch.full_like(scale, EMPTY_SCALE)
    own = identity = (torch.zeros_like(scale), none, fresh)
    if ranks.rank + 1 < ranks.size:
        with alone():
            added, reached = mlstm(q, k, v, log_input, log_forget, none, fresh)[1:]
        own = (log_forget.sum(1), added, reached)
    before = exclusive_scan(ranks, compose_scaled, own, identity)
    _, memory, scale = compose_scaled((torch.zeros_like(scale), memory, scale), before)
    with alone():
        return mlstm(q, k, v, log_input, log_forget, memory, scale)

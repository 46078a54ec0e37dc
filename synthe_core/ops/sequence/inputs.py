"""Operators that read a few inputs before their own: those of the rank before."""

from __future__ import annotations

from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.hardware.sequence import SequenceRanks
from synthe_core.ops.sequence.exchange import alone, shift
from synthe_core.ops.short_conv import short_conv
from synthe_core.ops.token_shift import token_shift


def inputs_before(ranks: SequenceRanks, x: Tensor, first: Tensor) -> Tensor:
    """The inputs before x [B, T, D], as many as `first` [B, J, D] has, which stand before the whole sequence."""
    count = first.shape[1]
    if x.shape[1] < count:
        raise InputError(
            f"a process has {x.shape[1]} tokens of a sequence, and a convolution reads {count} before them",
            "a longer data.sequence, or fewer processes in runtime.mesh.sequence",
        )
    if not count:
        return first
    return shift(ranks, 1, (x[:, x.shape[1] - count :],), (first,))[0]


@short_conv.over_ranks
def _(
    ranks: SequenceRanks,
    x: Tensor,
    weight: Tensor,
    state: Tensor | None,
    silu: bool = True,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    first = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2]) if state is None else state
    before = inputs_before(ranks, x, first.to(x.dtype))
    with alone():
        return short_conv(x, weight, before, silu, bias)


@token_shift.over_ranks
def _(ranks: SequenceRanks, x: Tensor, mix: Tensor, before: Tensor) -> tuple[Tensor, ...]:
    before = inputs_before(ranks, x, before)
    with alone():
        return token_shift(x, mix, before)

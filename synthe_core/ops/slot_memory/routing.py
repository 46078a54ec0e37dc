"""How a slot memory weights the slots that it reads, and how it ranks them by use."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from synthe_core.ops.hashing import GOLDEN_GAMMA, splitmix64

SINCE_READ, SINCE_WRITE, READ_USE, WRITE_USE = range(4)  # the columns of `ages`


class Policy(NamedTuple):
    """The settings of `slot_memory`.

    reads: slots that a head reads for a token. writes: slots overwritten in a tick, at most. match: affinity, in
    [-1, 1], from which a token refines a slot. horizon: tokens that the averages of use reach back. staleness: fair
    shares of use that a slot loses for every `horizon` tokens without a read or write. router: weights of the slots
    read.
    """

    reads: int
    writes: int
    match: float
    horizon: float
    staleness: float
    router: Literal["softmax", "sparsemax"]

    @property
    def decay(self) -> float:
        """Decay of an average of use per token."""
        return 1 - 1 / self.horizon


def route(logits: Tensor, router: str) -> Tensor:
    """The weights of slots with these logits [..., N], the largest first: softmax, or the nearest point of the simplex.

    Sparsemax sets the weights of slots that are too far behind to exactly 0. Source: Martins & Astudillo 2016.
    """
    if router == "softmax":
        return logits.softmax(-1)
    rank = torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype, device=logits.device)
    excess = logits.cumsum(-1) - 1
    support = (rank * logits > excess).sum(-1, keepdim=True)
    return (logits - excess.gather(-1, support - 1) / support).clamp_min(0)


def usefulness(ages: Tensor, policy: Policy) -> Tensor:
    """[B, J] of ages [B, J, 4]: the averages of reads and writes in fair shares, less a penalty for idle tokens."""
    idle = ages[..., :2].amin(-1)
    return ages[..., 2:].sum(-1) - policy.staleness / policy.horizon * idle


def gumbel(seed: int, position: Tensor, choice: Tensor, dtype: torch.dtype) -> Tensor:
    """-log(-log u) for position int64 [B, T] and choice int64 [B, T, ...] (head and slot), u uniform in (0, 1).

    u is a hash of the seed, the row, the position and the choice. So the same seed gives the same noise on any device,
    in any split of the sequence and in every kernel, and the backward pass computes it again instead of saving it.
    """
    row = torch.arange(1, position.shape[0] + 1, device=position.device)[:, None]
    token = splitmix64(splitmix64(seed + GOLDEN_GAMMA * row) + GOLDEN_GAMMA * position)
    bits = splitmix64(token.reshape(*token.shape, *[1] * (choice.dim() - 2)) + GOLDEN_GAMMA * choice)
    uniform = ((bits >> 41 & (1 << 23) - 1).to(dtype) + 0.5) / (1 << 23)
    return -(-uniform.log()).log()

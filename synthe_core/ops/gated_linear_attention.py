"""Gated linear attention with a decay for every key channel: a matrix of memory that adds.

Source: Yang et al. 2024, "Gated linear attention transformers with hardware-efficient training".
"""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.ops.dispatch import op, require_float
from synthe_core.ops.generalized_delta_rule import generalized_delta_rule


@op(batch_invariant=("cpu",))
def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = Diag(α_t) S_{t-1} + k_t v_tᵀ and o_t = S_tᵀ q_t, with α_t = exp(log_decay_t).

    q, k       [B, T, H, K]: queries and keys as they are; the operator neither scales nor normalises them.
    v          [B, T, H, V]
    log_decay  [B, T, H, K], at most 0: one for every key channel.
    state      [B, H, K, V]: S_0; None is zeros.

    Returns o [B, T, H, V] and S_T [B, H, K, V]. float32 or float64, one dtype for all.
    A token with k = 0 and log_decay = 0 leaves the memory untouched, which is how padding is written.
    """
    require_float("q", q)
    batch, time, heads, key = q.shape
    memory = q.new_zeros(batch, heads, key, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(time):
        memory = memory * log_decay[:, t, :, :, None].exp() + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    return torch.stack(outputs, 1), memory


@gated_linear_attention.kernel("composed", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def composed(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The generalised delta rule without its removal, whichever of its kernels serves."""
    none = torch.zeros_like(k)
    return generalized_delta_rule(q, k, v, none, none, log_decay, state)

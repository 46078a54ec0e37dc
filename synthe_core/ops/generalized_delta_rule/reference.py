"""The generalised delta rule: a memory with a decay per key channel, in which the value recalled at one key is
written at another.

Sources: Peng et al. 2025 (RWKV-7); Yang et al. 2024 (diagonal plus low rank transitions, "DPLR").
"""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.ops.dispatch import op, require_float


@op(batch_invariant=("cpu",))
def generalized_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = Diag(exp(w_t)) S_{t-1} + b_t (a_tᵀ S_{t-1}) + k_t v_tᵀ and o_t = S_tᵀ q_t, with w_t = log_decay_t.

    q, k       [B, T, H, K]: queries and keys as they are; the operator neither scales nor normalises them.
    v          [B, T, H, V]
    a, b       [B, T, H, K]: what is recalled at a_t, before the memory fades, is added at b_t. With b = -β a and a of
               length 1 that is removal; nothing here keeps the memory from growing if they are chosen otherwise.
    log_decay  [B, T, H, K], at most 0: one for every key channel.
    state      [B, H, K, V]: S_0; None is zeros.

    Returns o [B, T, H, V] and S_T [B, H, K, V]. float32 or float64, one dtype for all.
    A token with k = 0, b = 0 and log_decay = 0 leaves the memory untouched, which is how padding is written.
    """
    require_float("q", q)
    batch, time, heads, key = q.shape
    memory = q.new_zeros(batch, heads, key, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(time):
        recalled = torch.einsum("bhk,bhkv->bhv", a[:, t], memory)
        memory = memory * log_decay[:, t, :, :, None].exp() + b[:, t, :, :, None] * recalled[:, :, None]
        memory = memory + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    return torch.stack(outputs, 1), memory

"""The (gated) delta rule: an associative memory that replaces the value at a key.

Sources: Schlag et al. 2021 (fast weights), Yang et al. 2024 (parallel form), Yang et al. 2025 (Gated DeltaNet).
"""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.ops.dispatch import op, require_float


@op(batch_invariant=("cpu",))
def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = α_t S_{t-1} (I - β_t k_t k_tᵀ) + β_t v_t k_tᵀ and o_t = S_t q_t, with α_t = exp(log_decay_t).

    q, k       [B, T, G, K]: queries and keys as they are; the operator neither scales nor normalises them. G divides H:
               H / G value heads in a row read one head of q and k.
    v          [B, T, H, V]
    beta       [B, T, H]: how much of the old value at k_t is replaced; 0 leaves the memory, 1 overwrites, up to 2
               reflects, for keys of length 1.
    log_decay  [B, T, H], at most 0; None is no decay.
    state      [B, H, K, V]: S_0 transposed, so that row i is what key component i recalls; None is zeros.

    Returns o [B, T, H, V] and S_T [B, H, K, V]. float32 or float64, one dtype for all.
    A token with beta = 0 and log_decay = 0 leaves the memory untouched, which is how padding is written.
    """
    require_float("q", q)
    q, k = per_value_head(q, v), per_value_head(k, v)
    batch, time, heads, key = q.shape
    memory = q.new_zeros(batch, heads, key, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(time):
        if log_decay is not None:
            memory = memory * log_decay[:, t, :, None, None].exp()
        recalled = torch.einsum("bhk,bhkv->bhv", k[:, t], memory)
        written = beta[:, t, :, None] * (v[:, t] - recalled)
        memory = memory + k[:, t, :, :, None] * written[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    return torch.stack(outputs, 1), memory


def per_value_head(x: Tensor, v: Tensor) -> Tensor:
    """x [B, T, G, K] for each of the heads of v [B, T, H, V]: [B, T, H, K], a copy where G < H."""
    group = v.shape[2] // x.shape[2]
    return x if group == 1 else x.repeat_interleave(group, dim=2)

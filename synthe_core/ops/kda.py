"""Kimi's delta attention: the delta rule with a decay for every key channel.

Source: Kimi Team 2025, "Kimi Linear: an expressive, efficient attention architecture".
"""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.ops.delta_rule.fla import call_fla, chunked_call, even, use_recurrent
from synthe_core.ops.delta_rule.fla import refusal as fla_refusal
from synthe_core.ops.dispatch import op, require_float
from synthe_core.ops.eager import eager
from synthe_core.ops.generalized_delta_rule.chunked import chunked as chunked_rule
from synthe_core.ops.generalized_delta_rule.chunked import refusal as chunk_refusal
from synthe_core.ops.generalized_delta_rule.native import compiled_rule
from synthe_core.ops.generalized_delta_rule.native import refusal as native_refusal
from synthe_core.ops.triton_beta_memory import triton_beta_memory
from synthe_core.ops.triton_memory import RANK
from synthe_core.ops.triton_memory import refusal as triton_refusal


@op(batch_invariant=("cpu",))
def kda(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = (I - β_t k_t k_tᵀ) Diag(α_t) S_{t-1} + β_t k_t v_tᵀ and o_t = S_tᵀ q_t, with α_t = exp(log_decay_t).

    q, k       [B, T, H, K]: queries and keys as they are; the operator neither scales nor normalises them.
    v          [B, T, H, V]
    beta       [B, T, H]: how much of the old value at k_t is replaced, as in `delta_rule`.
    log_decay  [B, T, H, K], at most 0: one for every key channel.
    state      [B, H, K, V]: S_0; None is zeros.

    Returns o [B, T, H, V] and S_T [B, H, K, V]. float32 or float64, one dtype for all.
    A token with beta = 0 and log_decay = 0 leaves the memory untouched, which is how padding is written.
    """
    require_float("q", q)
    batch, time, heads, key = q.shape
    memory = q.new_zeros(batch, heads, key, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(time):
        memory = memory * log_decay[:, t, :, :, None].exp()
        recalled = torch.einsum("bhk,bhkv->bhv", k[:, t], memory)
        written = beta[:, t, :, None] * (v[:, t] - recalled)
        memory = memory + k[:, t, :, :, None] * written[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    return torch.stack(outputs, 1), memory


@kda.kernel("fla", rank=30, tolerance=2e-2)
def fla(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton: queries, keys and values rounded to bfloat16, gates and memory in float32; all float32 when decoding."""
    from fla.ops.kda import chunk_kda, fused_recurrent_kda  # optional, and slow to import

    if use_recurrent(q, k, v, beta, log_decay, state):
        return call_fla(fused_recurrent_kda, q, k, v, state, g=log_decay, beta=beta)
    return chunked_call(chunk_kda, q, k, v, state, g=even(log_decay), beta=beta)


fla.refuses(fla_refusal)


@kda.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton: token by token in float32, as the delta rule."""
    return triton_beta_memory(q, k, v, beta, log_decay, state, overwrite=True)


triton.refuses(triton_refusal)


@kda.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def compiled(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compiled C, shared with the generalised delta rule, which it saves a fifth of the arithmetic."""
    return compiled_rule(q, k, v, None, None, beta, log_decay, state)


compiled.refuses(native_refusal)


@kda.kernel("chunked", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Torch: the chunks of the generalised delta rule, of a = α ⊙ k, b = -β k and β k as the keys that are written."""
    with torch.autocast(q.device.type, enabled=False):
        strong = beta[..., None] * k
        return chunked_rule(q, strong, v, log_decay.exp() * k, -strong, log_decay, state)


chunked.refuses(chunk_refusal)

"""Gated linear attention: a matrix of memory that adds, where the delta rule overwrites.

Sources: Katharopoulos et al. 2020 (linear attention), Dao & Gu 2024 (one decay per head, Mamba-2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.ops.delta_rule.chunked import chunked_memory
from synthe_core.ops.delta_rule.chunked import refusal as chunk_refusal
from synthe_core.ops.delta_rule.fla import call_fla, chunked_call, use_recurrent
from synthe_core.ops.delta_rule.fla import refusal as fla_refusal
from synthe_core.ops.delta_rule.native import compiled_memory
from synthe_core.ops.delta_rule.native import refusal as native_refusal
from synthe_core.ops.delta_rule.reference import per_value_head
from synthe_core.ops.dispatch import op, require_float
from synthe_core.ops.eager import eager
from synthe_core.ops.triton_beta_memory import triton_beta_memory
from synthe_core.ops.triton_memory import RANK
from synthe_core.ops.triton_memory import refusal as triton_refusal


@op(batch_invariant=("cpu",))
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = α_t S_{t-1} + β_t v_t k_tᵀ and o_t = S_t q_t, with α_t = exp(log_decay_t).

    q, k       [B, T, G, K]: as they are; the operator neither scales nor normalises them. G divides H, as there.
    v          [B, T, H, V]
    beta       [B, T, H]: the strength with which a value is written.
    log_decay  [B, T, H], at most 0; None is no decay.
    state      [B, H, K, V]: S_0 transposed, as in `delta_rule`; None is zeros.

    Returns o [B, T, H, V] and S_T [B, H, K, V]. float32 or float64, one dtype for all.
    """
    require_float("q", q)
    q, k = per_value_head(q, v), per_value_head(k, v)
    batch, time, heads, key = q.shape
    memory = q.new_zeros(batch, heads, key, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(time):
        if log_decay is not None:
            memory = memory * log_decay[:, t, :, None, None].exp()
        memory = memory + k[:, t, :, :, None] * (beta[:, t, :, None] * v[:, t])[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    return torch.stack(outputs, 1), memory


@linear_attention.kernel("fla", rank=30, tolerance=2e-2)
def fla(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton (simple GLA): queries, keys and values rounded to bfloat16; all float32 when decoding."""
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla  # optional, and slow to import

    q, k = per_value_head(q, v), per_value_head(k, v)
    decay = torch.zeros_like(beta) if log_decay is None else log_decay
    written = beta[..., None] * v
    if use_recurrent(q, k, written, decay, state):
        return call_fla(fused_recurrent_simple_gla, q, k, written, state, g=decay)
    return chunked_call(chunk_simple_gla, q, k, written, state, g=decay)


fla.refuses(fla_refusal)


@linear_attention.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton: token by token in float32, the memory in registers."""
    return triton_beta_memory(per_value_head(q, v), per_value_head(k, v), v, beta, log_decay, state, overwrite=False)


triton.refuses(triton_refusal)


@linear_attention.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def compiled(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compiled C, shared with the delta rule."""
    return compiled_memory(q, k, v, beta, log_decay, state, False)


compiled.refuses(native_refusal)


@linear_attention.kernel("chunked", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Torch: chunks of 64 tokens, shared with the delta rule."""
    return chunked_memory(q, k, v, beta, log_decay, state, False)


chunked.refuses(chunk_refusal)

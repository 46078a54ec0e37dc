"""Softmax attention as torch has it, with a kernel for CPUs by which a query's numbers depend on its own keys only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware.execution import active_context
from synthe_core.ops.dispatch import primitive
from synthe_core.ops.linear import FOUR

BLOCK = 128  # keys that are summed together


@primitive(F.scaled_dot_product_attention)
def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """o = softmax(q kᵀ / sqrt(K)) v; q [B, H, T, K], k and v [B, G, S, K], o [B, H, T, K].

    attn_mask: bool [..., T, S], False for keys that a query does not read. is_causal: query t reads keys up to t.
    enable_gqa: G divides H, and H / G query heads in a row read one key head.
    """
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1) @ v


@scaled_dot_product_attention.kernel("batch-invariant", rank=0, tolerance=1e-5, batch_invariant=("cpu",))
def batch_invariant_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention of a single query, T = 1, to keys of which the first may be masked out (bool [B, 1, 1, S]): the numbers
    are the same however many masked keys stand before the others. The sums go over blocks counted from the last key,
    and then over the blocks in that order. Every other call is torch's, whose rows do not depend on each other."""
    single = attn_mask is not None and attn_mask.dtype == torch.bool and attn_mask.shape[1:3] == (1, 1)
    if attn_mask is None or not single or q.shape[2] > 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)
    return _by_blocks(q, k, v, attn_mask)


def capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, cap: float) -> Tensor:
    """o = softmax(cap tanh(q kᵀ / (cap sqrt(K)))) v over the keys where `mask`, bool [B or 1, 1, T, S], is true.

    q [B, H, T, K]; k, v [B, G, S, K], H / G query heads in a row read one key head; o [B, H, T, K], zeros for a query
    without a key. Torch's fused attention bounds no scores. Source: Gemma Team 2024, "Gemma 2".
    """
    if active_context().batch_invariant:
        return _by_blocks(q, k, v, mask, cap)
    queries = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3) * q.shape[-1] ** -0.5  # [B, G, H / G T, K]
    scores = _capped(queries @ k.transpose(-1, -2), cap).unflatten(2, (-1, q.shape[2]))
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    weights = weights.masked_fill(~mask.any(-1, keepdim=True)[:, None], 0.0).to(v.dtype)
    return (weights.flatten(2, 3) @ v).unflatten(2, (-1, q.shape[2])).flatten(1, 2)


def _capped(scores: Tensor, cap: float) -> Tensor:
    """cap tanh(scores / cap), at least in float32."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return cap * torch.tanh(scores.to(wide) / cap)


def _by_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, cap: float | None = None) -> Tensor:
    """Attention whose sums go over blocks of keys, counted from the last; `cap` bounds scores."""
    time = q.shape[2]
    queries = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3) * q.shape[-1] ** -0.5  # [B, G, H / G T, K]
    count = queries.shape[2]
    mask = mask.expand(-1, -1, count // time, -1) if time == 1 else mask.repeat(1, 1, count // time, 1)
    rows = -count % FOUR  # products of other sizes depend on how many keys there are
    queries, mask = F.pad(queries, (0, 0, 0, rows)), F.pad(mask, (0, 0, 0, rows))
    if front := -k.shape[2] % BLOCK:
        k, v = (F.pad(x, (0, 0, front, 0)) for x in (k, v))
        mask = F.pad(mask, (front, 0))
    scores = queries @ k.transpose(-1, -2)  # [B, G, H / G T, S]
    if cap is not None:
        scores = _capped(scores, cap).to(q.dtype)
    scores = scores.masked_fill(~mask, -torch.inf)
    largest = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights, ones = (scores - largest).exp(), scores.new_ones(BLOCK, 1)
    weighted, total = scores.new_zeros(()), scores.new_zeros(())
    for first in range(k.shape[2] - BLOCK, -1, -BLOCK):
        part = weights[..., first : first + BLOCK]
        weighted = weighted + part @ v[:, :, first : first + BLOCK]
        total = total + part @ ones
    out = weighted / total.clamp_min(torch.finfo(scores.dtype).tiny)
    return out[:, :, :count].unflatten(2, (-1, time)).flatten(1, 2)

"""Causal softmax attention over a bounded window of keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware import Hardware
from synthe_core.ops.dispatch import Call, op


@op
def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None) -> Tensor:
    """Softmax attention of each token to itself and the `window - 1` tokens before it.

        o_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s        over  s in (P + t - window, P + t]

    q [B, T, H, K]; k, v [B, P + T, G, K] where the first P entries are the past and G divides H (query h reads
    key head h // (H / G)); valid bool [B, P + T] or None: keys that are False are never read. A query with no valid
    key gives zeros. Returns o [B, T, H, K]. Source: Vaswani et al. 2017; grouped heads: Ainslie et al. 2023.
    """
    past = k.shape[1] - q.shape[1]
    group = q.shape[2] // k.shape[2]
    outputs = []
    for t in range(q.shape[1]):
        first, last = max(0, past + t + 1 - window), past + t + 1
        keys = k[:, first:last].repeat_interleave(group, dim=2)
        values = v[:, first:last].repeat_interleave(group, dim=2)
        scores = torch.einsum("bhk,bshk->bhs", q[:, t], keys) * q.shape[-1] ** -0.5
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, first:last], -torch.inf)
        weights = torch.nan_to_num(scores.softmax(-1))
        outputs.append(torch.einsum("bhs,bshk->bhk", weights, values))
    return torch.stack(outputs, dim=1)


@window_attention.kernel("causal-sdpa", rank=30, tolerance=1e-5)
def causal_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None) -> Tensor:
    """Torch's fused attention with its own causal flag: no past, every token within the window, no padding."""
    return _sdpa(q, k, v, mask=None, causal=q.shape[1] > 1)


@causal_sdpa.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    keys, single = call.arguments["k"].shape[1], call.time == 1
    if call.arguments["valid"] is not None:
        return "some keys are padding, so a mask is needed"
    if keys > call.arguments["window"]:
        return "the window is shorter than the keys"
    return (
        None if keys == call.time or single else "the queries continue a past, so causality is not the plain triangle"
    )


@window_attention.kernel("banded-sdpa", rank=20, tolerance=1e-5)
def banded_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None) -> Tensor:
    """Queries in blocks of `window`, each against its own block of keys and the one before: cost T 2 window, not T²."""
    batch, time, heads, size = q.shape
    past = k.shape[1] - time
    front, back = window - past, -time % window  # so that one whole block of keys precedes the first query
    real = torch.ones(batch, past + time, dtype=torch.bool, device=q.device) if valid is None else valid
    blocks = (time + back) // window
    q = F.pad(q, (0, 0, 0, 0, 0, back)).view(batch * blocks, window, heads, size)

    def pairs(x: Tensor) -> Tensor:
        x = F.pad(x.flatten(2), (0, 0, front, back)).unflatten(1, (blocks + 1, window))
        return torch.stack([x[:, :-1], x[:, 1:]], dim=2).reshape(batch * blocks, 2 * window, -1)

    keys, values = (pairs(x).unflatten(2, x.shape[2:]) for x in (k, v))
    real = pairs(real.unsqueeze(-1)).squeeze(-1)
    row, column = torch.arange(window, device=q.device)[:, None], torch.arange(2 * window, device=q.device)
    band = (column <= row + window) & (column > row)
    out = _sdpa(q, keys, values, mask=(band & real[:, None])[:, None], causal=False)
    return out.reshape(batch, blocks * window, heads, size)[:, :time]


@banded_sdpa.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    window, keys = call.arguments["window"], call.arguments["k"].shape[1]
    if call.time < 2 * window:
        return "fewer than two windows of queries: one masked product is cheaper"
    return "the past is longer than the window" if keys - call.time > window else None


@window_attention.kernel("masked-sdpa", rank=10, tolerance=1e-5)
def masked_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None) -> Tensor:
    """Torch's fused attention with an explicit mask: any past, any padding."""
    past = k.shape[1] - q.shape[1]
    row = torch.arange(q.shape[1], device=q.device)[:, None] + past
    column = torch.arange(k.shape[1], device=q.device)
    mask = ((column <= row) & (column > row - window))[None, None]
    if valid is not None:
        mask = mask & valid[:, None, None]
    return _sdpa(q, k, v, mask=mask, causal=False)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    if mask is not None:  # a query that may read nothing gives zeros, not NaN
        out = out.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return out.transpose(1, 2)

"""Causal softmax attention with a forget gate: every score is lowered by what the gates between key and query forget.

Source: Lin et al. 2025, "Forgetting transformer: softmax attention with a forget gate".
"""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.hardware.execution import active_context
from synthe_core.ops.attention import window_mask
from synthe_core.ops.dispatch import op

BLOCK = 256  # queries whose scores are in memory at once


@op
def forgetting_attention(q: Tensor, k: Tensor, v: Tensor, reach: Tensor, window: int, valid: Tensor | None) -> Tensor:
    """Softmax attention of each token to itself and the `window - 1` tokens before it, nearer tokens preferred.

        o_t = sum_s softmax_s(q_t . k_s / sqrt(K) + c_t - c_s) v_s        over  s in (P + t - window, P + t]

    c are running sums of log forget gates, so that c_t - c_s is the logarithm of the product of the gates after s.

    q [B, T, H, K]; k, v [B, P + T, G, K] where the first P entries are the past and G divides H (query h reads key
    head h // (H / G)); reach [B, P + T, H]: c, at least float32, from any origin; valid bool [B, P + T] or None: keys
    that are False are never read. A query with no valid key gives zeros. Returns o [B, T, H, K].
    """
    past, group = k.shape[1] - q.shape[1], q.shape[2] // k.shape[2]
    outputs = []
    for t in range(q.shape[1]):
        first, last = max(0, past + t + 1 - window), past + t + 1
        keys = k[:, first:last].repeat_interleave(group, dim=2)
        values = v[:, first:last].repeat_interleave(group, dim=2)
        scores = torch.einsum("bhk,bshk->bhs", q[:, t], keys) * q.shape[-1] ** -0.5
        scores = scores + (reach[:, past + t, None] - reach[:, first:last]).transpose(1, 2)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, first:last], -torch.inf)
        weights = torch.nan_to_num(scores.softmax(-1)).to(v.dtype)
        outputs.append(torch.einsum("bhs,bshk->bhk", weights, values))
    return torch.stack(outputs, dim=1)


@forgetting_attention.kernel("blocks", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def blocks(q: Tensor, k: Tensor, v: Tensor, reach: Tensor, window: int, valid: Tensor | None) -> Tensor:
    """Queries in blocks, each against the keys that one of them reads: scores of a block only are in memory. Where
    batch invariance is required, rows are computed one by one, from the first key that is real."""
    if not active_context().batch_invariant:
        return _in_blocks(q, k, v, reach, window, valid)
    past, outputs = k.shape[1] - q.shape[1], []
    firsts = [0] * len(q) if valid is None else valid.int().argmax(1).clamp_max(past).tolist()
    for row, first in enumerate(firsts):
        own = None if valid is None else valid[row : row + 1, first:]
        keys, values, sums = (x[row : row + 1, first:] for x in (k, v, reach))
        outputs.append(_in_blocks(q[row : row + 1], keys, values, sums, window, own))
    return torch.cat(outputs)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, reach: Tensor, window: int, valid: Tensor | None) -> Tensor:
    past = k.shape[1] - q.shape[1]
    outputs = []
    for start in range(0, q.shape[1], BLOCK):
        queries = q[:, start : start + BLOCK]
        first, last = max(0, past + start + 1 - window), past + start + queries.shape[1]
        mask = window_mask(range(past + start, last), range(first, last), window, q.device)[None, None, None]
        if valid is not None:
            mask = mask & valid[:, None, None, None, first:last]
        outputs.append(_block(queries, k[:, first:last], v[:, first:last], reach[:, first:last], mask))
    return torch.cat(outputs, 1)


def _block(q: Tensor, k: Tensor, v: Tensor, reach: Tensor, mask: Tensor) -> Tensor:
    """q [B, n, H, K], the last n of the S keys' tokens; k, v [B, S, G, K], reach [B, S, H], mask [B or 1, 1, 1, n, S]:
    o [B, n, H, K]."""
    n, groups = q.shape[1], k.shape[2]
    q, k, v, c = (x.transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v, reach))
    grouped = q.unflatten(1, (groups, -1)).flatten(2, 3)  # [B, G, H / G n, K]
    scores = (grouped @ k.transpose(-1, -2)).unflatten(2, (-1, n))  # [B, G, H / G, n, S]
    c = c.unflatten(1, (groups, -1))
    scores = scores.to(c.dtype) + (c[..., -n:, None] - c[..., None, :])
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0.0).to(v.dtype)
    return (weights.flatten(2, 3) @ v).unflatten(2, (-1, n)).flatten(1, 2).transpose(1, 2)

"""The recurrence of Mamba-3: a memory that adds, discretised by the trapezoidal rule, with several writes a token.

Source: Lahoti et al. 2026, "Mamba-3: improved sequence modeling using state space principles".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.delta_rule.chunked import chunk_decays
from synthe_core.ops.dispatch import Call, op, require_float
from synthe_core.ops.frames import join_chunks, split_chunks
from synthe_core.ops.linear_attention import linear_attention

CHUNK = 64  # products of a chunk: its tokens times their rank
LEAST_CHUNK = 16


@op(batch_invariant=("cpu",))
def mamba3_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    trapezoid: Tensor,
    log_decay: Tensor,
    last_k: Tensor,
    last_v: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """S_t = α_t (S_{t-1} + (1 - λ_t) Δ_t W_{t-1}) + λ_t Δ_t W_t and o_{t,r} = S_tᵀ q_{t,r}, where W_t = Σ_r k_{t,r}
    v_{t,r}ᵀ.

    q, k       [B, T, H, R, N] and v [B, T, H, R, P]: R queries, keys and values a token.
    delta      [B, T, H]: Δ >= 0; trapezoid [B, T, H]: λ, the weight of the present in the integral over a step, in
               [0, 1]; log_decay [B, T, H]: log α, at most 0.
    last_k     [B, H, R, N] and last_v [B, H, R, P]: those of the token before the first.
    state      [B, H, N, P]: S_0.

    Returns o [B, T, H, R, P] and S_T. float32 or float64, one dtype for all. A token with delta = 0 and log_decay = 0
    leaves the memory untouched, which is how padding is written.
    """
    require_float("q", q)
    outputs = []
    for t in range(q.shape[1]):
        before = (1 - trapezoid[:, t]) * delta[:, t] * log_decay[:, t].exp()
        now = trapezoid[:, t] * delta[:, t]
        keys = torch.cat([before[..., None, None] * last_k, now[..., None, None] * k[:, t]], 2)
        state = log_decay[:, t, :, None, None].exp() * state + keys.mT @ torch.cat([last_v, v[:, t]], 2)
        last_k, last_v = k[:, t], v[:, t]
        outputs.append(q[:, t] @ state)
    return torch.stack(outputs, 1), state


def _by_writes(
    delta: Tensor, trapezoid: Tensor, last_k: Tensor, last_v: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence with one write a token: S̃_t = α_t S̃_{t-1} + c_t Σ_r k_{t,r} v_{t,r}ᵀ, where c_t has what the next
    token adds of it: o_t = α_t S̃_{t-1}ᵀ q_t + λ_t Δ_t Σ_r v_{t,r} (k_{t,r} · q_t).

    Returns λΔ and c [B, T, H], and S̃_0; S̃_T is S_T, as nothing follows."""
    now, earlier = trapezoid * delta, (1 - trapezoid) * delta
    ahead = F.pad(earlier[:, 1:], (0, 0, 0, 1))
    first = state + earlier[:, 0, :, None, None] * (last_k.mT @ last_v)
    return now, now + ahead, first


@mamba3_scan.kernel("composed", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def composed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    trapezoid: Tensor,
    log_decay: Tensor,
    last_k: Tensor,
    last_v: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Linear attention, whichever of its kernels serves: every query reads what the tokens before it wrote."""
    now, written, first = _by_writes(delta, trapezoid, last_k, last_v, state)
    q, k, v = q[:, :, :, 0], k[:, :, :, 0], v[:, :, :, 0]
    # The operator reads after it writes: token t's query, moved to t - 1, reads what is there before t writes.
    ahead = F.pad(q[:, 1:], (0, 0, 0, 0, 0, 1))
    later, state = linear_attention(ahead, k, v, written, log_decay, first)
    read = torch.cat([(q[:, 0, :, None] @ first).transpose(1, 2), later[:, :-1]], 1)
    own = now * (q * k).sum(-1)
    o = torch.addcmul(own[..., None] * v, log_decay.exp()[..., None], read)
    return o[:, :, :, None], state


@composed.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return None if call.arguments["q"].shape[3] == 1 else "it has one query and one key a token"


@mamba3_scan.kernel("chunked", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    trapezoid: Tensor,
    log_decay: Tensor,
    last_k: Tensor,
    last_v: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Torch: chunks of 64 / R tokens, 16 at least, whose R queries and keys make one product."""
    now, written, memory = _by_writes(delta, trapezoid, last_k, last_v, state)
    (batch, time, heads, rank), like = q.shape[:4], q[:, :, :, 0]
    size = min(max(CHUNK // rank, LEAST_CHUNK), time)
    with torch.autocast(q.device.type, enabled=False):
        qs, ks, vs = (split_chunks(x, size).flatten(2, 3) for x in (q, k, v))  # [B H, n, C R, ...]
        decay = chunk_decays(split_chunks(log_decay, size))
        now, written = split_chunks(now, size), split_chunks(written, size)[..., None, :]
        weights = (decay.between * written).tril(-1) + torch.diag_embed(now)
        read = (qs @ ks.mT).unflatten(-1, (size, rank)).unflatten(-3, (size, rank))
        read = (read * weights[..., :, None, :, None]).flatten(-2).flatten(-3, -2)
        reach = (decay.to_end * written.mT).repeat_interleave(rank, 2)
        added = (reach * ks).mT @ vs
        memory, befores = memory.flatten(0, 1), []
        for write, through in zip(added.unbind(1), decay.through.unbind(1), strict=True):
            befores.append(memory)
            memory = torch.addcmul(write, through, memory)
        o = (decay.from_start.repeat_interleave(rank, 2) * qs) @ torch.stack(befores, 1) + read @ vs
    return join_chunks(o.unflatten(2, (size, rank)), like), memory.unflatten(0, (batch, heads))

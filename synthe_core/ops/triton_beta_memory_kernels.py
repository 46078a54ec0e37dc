"""Triton: matrix memories that a token writes to with a strength of its own, token by token. Imports Triton.

P_t = α_t S_{t-1} and S_t = P_t + β_t k_t (v_t - k_tᵀ P_t)ᵀ, or without OVERWRITE S_t = P_t + β_t k_t v_tᵀ. It reads
o_t = S_tᵀ q_t. DECAY: 0 for none, 1 for one α a head, 2 for one a key channel. Columns of S do not meet, so a program
has BV of them for one row and head. The backward pass computes the states of one chunk of tokens after the other again,
from the last.
"""

from __future__ import annotations

import triton
import triton.language as tl

from synthe_core.ops.triton_memory_kernels import token


@triton.jit
def decayed(S, log_decay, at, ck, K, DECAY: tl.constexpr):
    """P, and what it is multiplied by [BK, 1]."""
    alpha = tl.sum(S * 0, 1)[:, None] + 1
    if DECAY == 1:
        alpha = alpha * tl.exp(tl.load(log_decay + at))
    if DECAY == 2:
        alpha = tl.exp(token(log_decay, at, ck, K))[:, None]
    return S * alpha, alpha


@triton.jit
def missed(k, v, P, OVERWRITE: tl.constexpr):
    """v - kᵀ P, or v."""
    if OVERWRITE:
        return v - tl.sum(k[:, None] * P, 0)
    return v


@triton.jit
def beta_memory_forward(
    q, k, v, beta, log_decay, state, o, final, saved, time, heads, chunks, K, V,
    OVERWRITE: tl.constexpr, DECAY: tl.constexpr, HAS_STATE: tl.constexpr, SAVE: tl.constexpr,
    CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0).to(tl.int64)
    row, head = cell // heads, cell % heads
    ck, cv = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    mask = (ck < K)[:, None] & (cv < V)[None]
    place = ck[:, None] * V + cv[None]
    S = tl.zeros([BK, BV], dtype=o.dtype.element_ty)
    if HAS_STATE:
        S = tl.load(state + cell * K * V + place, mask=mask, other=0.0)
    for t in range(0, time):
        if SAVE:
            tl.store(saved + (cell * chunks + t // CHUNK) * K * V + place, S, mask=mask & (t % CHUNK == 0))
        at = (row * time + t) * heads + head
        P, _ = decayed(S, log_decay, at, ck, K, DECAY)
        key = token(k, at, ck, K)
        S = P + (tl.load(beta + at) * key)[:, None] * missed(key, token(v, at, cv, V), P, OVERWRITE)[None]
        tl.store(o + at * V + cv, tl.sum(token(q, at, ck, K)[:, None] * S, 0), mask=cv < V)
    tl.store(final + cell * K * V + place, S, mask=mask)


@triton.jit
def token_gradients(
    q, k, v, beta, log_decay, o_grad, of_q, of_k, of_v, of_beta, of_decay, S, dS, at, behind, ck, cv, K, V,
    OVERWRITE: tl.constexpr, DECAY: tl.constexpr, HAS_O: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of a token that found S; returns that of S."""
    P, alpha = decayed(S, log_decay, at, ck, K, DECAY)
    key, strength = token(k, at, ck, K), tl.load(beta + at)
    error = missed(key, token(v, at, cv, V), P, OVERWRITE)
    if HAS_O:
        upstream = token(o_grad, at, cv, V)
        now = P + (strength * key)[:, None] * error[None]
        tl.store(of_q + behind + at * K + ck, tl.sum(now * upstream[None], 1), mask=ck < K)
        dS += token(q, at, ck, K)[:, None] * upstream[None]
    along = tl.sum(key[:, None] * dS, 0)
    of_error = strength * along
    tl.store(of_beta + behind + at, tl.sum(along * error, 0))
    tl.store(of_v + at * V + cv, of_error, mask=cv < V)
    of_key = strength * tl.sum(dS * error[None], 1)
    if OVERWRITE:
        of_key -= tl.sum(P * of_error[None], 1)
        dS -= key[:, None] * of_error[None]
    tl.store(of_k + behind + at * K + ck, of_key, mask=ck < K)
    if DECAY == 1:
        tl.store(of_decay + behind + at, tl.sum(tl.sum(dS * P, 1), 0))
    if DECAY == 2:
        tl.store(of_decay + behind + at * K + ck, tl.sum(dS * P, 1), mask=ck < K)
    return dS * alpha


@triton.jit
def beta_memory_backward(
    q, k, v, beta, log_decay, saved, scratch, o_grad, final_grad, of_q, of_k, of_v, of_beta, of_decay, of_state,
    time, heads, chunks, K, V, stride,
    OVERWRITE: tl.constexpr, DECAY: tl.constexpr, HAS_O: tl.constexpr, HAS_FINAL: tl.constexpr,
    CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Each block of columns has its own gradients of q, k, β and the decay, `stride` numbers behind those of the one
    before."""
    cell, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row, head = cell // heads, cell % heads
    ck, cv = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    mask = (ck < K)[:, None] & (cv < V)[None]
    place = ck[:, None] * V + cv[None]
    dS = tl.zeros([BK, BV], dtype=v.dtype.element_ty)
    if HAS_FINAL:
        dS = tl.load(final_grad + cell * K * V + place, mask=mask, other=0.0)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        start = chunk * CHUNK
        end = tl.minimum(start + CHUNK, time)
        S = tl.load(saved + (cell * chunks + chunk) * K * V + place, mask=mask, other=0.0)
        for t in range(start, end):
            tl.store(scratch + (cell * CHUNK + t - start) * K * V + place, S, mask=mask)
            at = (row * time + t) * heads + head
            P, _ = decayed(S, log_decay, at, ck, K, DECAY)
            key = token(k, at, ck, K)
            S = P + (tl.load(beta + at) * key)[:, None] * missed(key, token(v, at, cv, V), P, OVERWRITE)[None]
        tl.debug_barrier()
        for step in range(0, end - start):
            t = end - 1 - step
            S = tl.load(scratch + (cell * CHUNK + t - start) * K * V + place, mask=mask, other=0.0)
            dS = token_gradients(
                q, k, v, beta, log_decay, o_grad, of_q, of_k, of_v, of_beta, of_decay, S, dS,
                (row * time + t) * heads + head, block * stride, ck, cv, K, V, OVERWRITE, DECAY, HAS_O,
            )  # fmt: skip
        tl.debug_barrier()
    tl.store(of_state + cell * K * V + place, dS, mask=mask)

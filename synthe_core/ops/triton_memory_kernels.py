"""Triton: matrix memories token by token, in the precision of their inputs. Imports Triton.

S_t = Diag(exp(w_t)) S_{t-1} + b_t (a_tᵀ S_{t-1}) + k_t v_tᵀ and o_t = S_tᵀ q_t. Columns of S do not meet, so a program
has BV of them for one row and head, in registers. The backward pass computes the states of one chunk of tokens after
the other again, from the last, and has them in a scratch of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def token(x, at, channel, size):
    return tl.load(x + at * size + channel, mask=channel < size, other=0.0)


@triton.jit
def recalled_at(a, at, ck, K, S, LOW_RANK: tl.constexpr):
    """a and aᵀ S; zeros without a low-rank part."""
    if LOW_RANK:
        direction = token(a, at, ck, K)
        return direction, tl.sum(direction[:, None] * S, 0)
    return tl.sum(S * 0, 1), tl.sum(S * 0, 0)


@triton.jit
def advanced(k, v, b, log_decay, at, ck, cv, K, V, S, recalled, LOW_RANK: tl.constexpr, DECAY: tl.constexpr):
    """S after a token."""
    if DECAY:
        S = S * tl.exp(token(log_decay, at, ck, K))[:, None]
    if LOW_RANK:
        S += token(b, at, ck, K)[:, None] * recalled[None]
    return S + token(k, at, ck, K)[:, None] * token(v, at, cv, V)[None]


@triton.jit
def memory_forward(
    q, k, v, a, b, log_decay, state, o, final, saved, time, heads, chunks, K, V,
    LOW_RANK: tl.constexpr, DECAY: tl.constexpr, HAS_STATE: tl.constexpr, SAVE: tl.constexpr,
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
        recalled = recalled_at(a, at, ck, K, S, LOW_RANK)[1]
        S = advanced(k, v, b, log_decay, at, ck, cv, K, V, S, recalled, LOW_RANK, DECAY)
        tl.store(o + at * V + cv, tl.sum(token(q, at, ck, K)[:, None] * S, 0), mask=cv < V)
    tl.store(final + cell * K * V + place, S, mask=mask)


@triton.jit
def memory_backward(
    q, k, v, a, b, log_decay, saved, scratch, o_grad, final_grad, of_keys, of_v, of_state,
    time, heads, chunks, K, V, tokens,
    LOW_RANK: tl.constexpr, DECAY: tl.constexpr, HAS_O: tl.constexpr, HAS_FINAL: tl.constexpr,
    CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """`of_keys` [blocks of V, 5, B, T, H, K] takes the gradients of q, k, a, b and log_decay, each block by itself."""
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
            recalled = recalled_at(a, at, ck, K, S, LOW_RANK)[1]
            S = advanced(k, v, b, log_decay, at, ck, cv, K, V, S, recalled, LOW_RANK, DECAY)
        tl.debug_barrier()
        for step in range(0, end - start):
            t = end - 1 - step
            at = (row * time + t) * heads + head
            S = tl.load(scratch + (cell * CHUNK + t - start) * K * V + place, mask=mask, other=0.0)
            direction, recalled = recalled_at(a, at, ck, K, S, LOW_RANK)
            now = advanced(k, v, b, log_decay, at, ck, cv, K, V, S, recalled, LOW_RANK, DECAY)
            target = of_keys + ((block * 5) * tokens + at) * K + ck
            if HAS_O:
                upstream = token(o_grad, at, cv, V)
                tl.store(target, tl.sum(now * upstream[None], 1), mask=ck < K)
                dS += token(q, at, ck, K)[:, None] * upstream[None]
            tl.store(target + tokens * K, tl.sum(dS * token(v, at, cv, V)[None], 1), mask=ck < K)
            tl.store(of_v + at * V + cv, tl.sum(token(k, at, ck, K)[:, None] * dS, 0), mask=cv < V)
            before = dS
            if DECAY:
                decay = tl.exp(token(log_decay, at, ck, K))
                tl.store(target + 4 * tokens * K, decay * tl.sum(dS * S, 1), mask=ck < K)
                before = decay[:, None] * dS
            if LOW_RANK:
                of_recalled = tl.sum(token(b, at, ck, K)[:, None] * dS, 0)
                tl.store(target + 2 * tokens * K, tl.sum(S * of_recalled[None], 1), mask=ck < K)
                tl.store(target + 3 * tokens * K, tl.sum(dS * recalled[None], 1), mask=ck < K)
                before += direction[:, None] * of_recalled[None]
            dS = before
        tl.debug_barrier()
    tl.store(of_state + cell * K * V + place, dS, mask=mask)

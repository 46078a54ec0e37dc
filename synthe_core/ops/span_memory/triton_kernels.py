"""Triton: the span memory, a program for each row and head with all of its state in registers. Imports Triton.

Names: M [K, V] and U the memory and its velocity, G = Σ r k kᵀ and W = Σ r k vᵀ what is pending, n, na and ne the sums
of w, w α and w η. A segment is what lies between two steps; its tokens come in tiles, which end where it ends. The
1e-4 is the reference's MIN_SQUARE.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def squares(x):
    return tl.sum(tl.sum(x * x, 1), 0)


@triton.jit
def square_block(x, place, first, last, rows, columns, offset, stride):
    """A block x[first, last] of a matrix, zeros outside of `rows` by `columns`."""
    mask = (first[:, None] < rows) & (last[None] < columns)
    return tl.load(x + place + first[:, None] * stride + offset + last[None], mask=mask, other=0.0)


@triton.jit
def store_block(x, place, first, last, rows, columns, offset, stride, value):
    mask = (first[:, None] < rows) & (last[None] < columns)
    tl.store(x + place + first[:, None] * stride + offset + last[None], value, mask=mask)


@triton.jit
def vectors(x, row, t, time, head, heads, channel, size, mask):
    """x [B, T, H, size] of the tokens t."""
    at = ((row * time + t[:, None]) * heads + head) * size + channel[None]
    return tl.load(x + at, mask=mask[:, None] & (channel[None] < size), other=0.0)


@triton.jit
def recall(key, value, rate, sharpness, weight, M, row, t, time, head, heads, K, V, mask,
           HAS_SHARPNESS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):  # fmt: skip
    """Of a tile: k, v, the error's vector, ‖v‖², the relative error, w, s, and σ of the rate's logit."""
    k = vectors(key, row, t, time, head, heads, tl.arange(0, BK), K, mask)
    v = vectors(value, row, t, time, head, heads, tl.arange(0, BV), V, mask)
    missed = product(k, M) - v
    size = tl.sum(v * v, 1)
    error = tl.sum(missed * missed, 1) / tl.maximum(size, 1e-4)
    logit = tl.load(rate + (row * time + t) * heads + head, mask=mask, other=0.0)
    s = tl.sum(tl.zeros_like(logit), 0)
    if HAS_SHARPNESS:
        s = tl.load(sharpness + head)
        logit += s * tl.log(1e-4 + error)
    w = tl.load(weight + row * time + t, mask=mask, other=0.0)
    return k, v, missed, size, error, w, s, 1 / (1 + tl.exp(-logit))


@triton.jit
def tile_sums(decay, momentum, row, t, time, head, heads, w, mask, HAS_MOMENTUM: tl.constexpr):
    """α and η of a tile's tokens; η is 0 without momentum."""
    at = (row * time + t) * heads + head
    alpha = tl.load(decay + at, mask=mask, other=0.0)
    if HAS_MOMENTUM:
        return alpha, tl.load(momentum + at, mask=mask, other=0.0)
    return alpha, tl.zeros_like(alpha)


@triton.jit
def step(M, U, G, W, n, na, ne, K, HAS_MOMENTUM: tl.constexpr):
    """M and U after the end of a span."""
    count = tl.maximum(n, 1e-4)
    change = (W - product(G, M)) / tl.sqrt(tl.maximum(squares(G), 1.0))
    if HAS_MOMENTUM:
        U = ne / count * U + change
        change = U
    M = (1 - na / count) * M + change
    return M / tl.sqrt(tl.maximum(squares(M) / K, 1.0)), U


@triton.jit
def tile_end(finished, row, start, time, BT: tl.constexpr):
    """Where the tile that begins at `start` ends: before the next token that finishes a span."""
    t = start + tl.arange(0, BT)
    ends = tl.load(finished + row * time + t, mask=(t > start) & (t < time), other=0)
    return tl.minimum(tl.min(tl.where(ends != 0, t, start + BT), 0), time)


@triton.jit
def span_memory_forward(
    query, key, value, rate, sharpness, decay, momentum, weight, finished, memory, velocity, pending, tally,
    read, error, used, memory_out, velocity_out, pending_out, tally_out, memories, velocities, starts, counts,
    time, heads, segments, K, V,
    HAS_SHARPNESS: tl.constexpr, HAS_MOMENTUM: tl.constexpr, SAVE: tl.constexpr,
    BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cell = row * heads + head
    ck, cv = tl.arange(0, BK), tl.arange(0, BV)
    M = square_block(memory, cell * K * V, ck, cv, K, V, 0, V)
    U = square_block(velocity, cell * K * V, ck, cv, K if HAS_MOMENTUM else 0, V, 0, V)
    G = square_block(pending, cell * K * (K + V), ck, ck, K, K, 0, K + V)
    W = square_block(pending, cell * K * (K + V), ck, cv, K, V, K, K + V)
    n, na, ne = tl.load(tally + cell * 3), tl.load(tally + cell * 3 + 1), tl.load(tally + cell * 3 + 2)
    start = tl.program_id(0) * 0
    segment = tl.program_id(0) * 0
    if SAVE:
        store_block(memories, cell * segments * K * V, ck, cv, K, V, 0, V, M)
        if HAS_MOMENTUM:
            store_block(velocities, cell * segments * K * V, ck, cv, K, V, 0, V, U)
        tl.store(starts + cell * segments, start)
    while start < time:
        if tl.load(finished + row * time + start) != 0:
            M, U = step(M, U, G, W, n, na, ne, K, HAS_MOMENTUM)
            G, W = tl.zeros_like(G), tl.zeros_like(W)
            n, na, ne = n * 0, na * 0, ne * 0
            segment += 1
            if SAVE:
                store_block(memories, (cell * segments + segment) * K * V, ck, cv, K, V, 0, V, M)
                if HAS_MOMENTUM:
                    store_block(velocities, (cell * segments + segment) * K * V, ck, cv, K, V, 0, V, U)
                tl.store(starts + cell * segments + segment, start)
        end = tile_end(finished, row, start, time, BT)
        t = start + tl.arange(0, BT)
        mask = t < end
        k, v, _missed, _size, e, w, _s, gate = recall(
            key, value, rate, sharpness, weight, M, row, t, time, head, heads, K, V, mask, HAS_SHARPNESS, BK, BV
        )
        alpha, eta = tile_sums(decay, momentum, row, t, time, head, heads, w, mask, HAS_MOMENTUM)
        r = w * gate
        strong = tl.trans(r[:, None] * k)
        G += product(strong, k)
        W += product(strong, v)
        n, na, ne = n + tl.sum(w, 0), na + tl.sum(w * alpha, 0), ne + tl.sum(w * eta, 0)
        at = (row * time + t) * heads + head
        tl.store(error + at, e, mask=mask)
        tl.store(used + at, r, mask=mask)
        q = vectors(query, row, t, time, head, heads, ck, K, mask)
        tl.store(read + at[:, None] * V + cv[None], product(q, M), mask=mask[:, None] & (cv[None] < V))
        start = end
    store_block(memory_out, cell * K * V, ck, cv, K, V, 0, V, M)
    if HAS_MOMENTUM:
        store_block(velocity_out, cell * K * V, ck, cv, K, V, 0, V, U)
    store_block(pending_out, cell * K * (K + V), ck, ck, K, K, 0, K + V, G)
    store_block(pending_out, cell * K * (K + V), ck, cv, K, V, K, K + V, W)
    tl.store(tally_out + cell * 3, n)
    tl.store(tally_out + cell * 3 + 1, na)
    tl.store(tally_out + cell * 3 + 2, ne)
    tl.store(counts + cell, segment)

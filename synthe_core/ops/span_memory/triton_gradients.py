"""Triton: the backward pass of the span memory, segment by segment from the last. Imports Triton.

The memory of every segment was saved; what was pending at its end is computed again from its tokens. dM, dU, dG, dW,
dn, da and de are the gradients of M, U, G, W and of the sums of w, w α and w η.
"""

from __future__ import annotations

import triton
import triton.language as tl

from synthe_core.ops.span_memory.triton_kernels import (
    product,
    recall,
    square_block,
    squares,
    store_block,
    tile_sums,
    vectors,
)


@triton.jit
def segment_sums(
    key, value, rate, sharpness, decay, momentum, weight, M, G, W, n, na, ne, row, start, end, time, head, heads, K, V,
    HAS_SHARPNESS: tl.constexpr, HAS_MOMENTUM: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """What is pending at the end of a segment, from what was at its start."""
    for first in range(start, end, BT):
        t = first + tl.arange(0, BT)
        mask = t < end
        k, v, _missed, _size, _e, w, _s, gate = recall(
            key, value, rate, sharpness, weight, M, row, t, time, head, heads, K, V, mask, HAS_SHARPNESS, BK, BV
        )
        alpha, eta = tile_sums(decay, momentum, row, t, time, head, heads, w, mask, HAS_MOMENTUM)
        strong = tl.trans((w * gate)[:, None] * k)
        G += product(strong, k)
        W += product(strong, v)
        n, na, ne = n + tl.sum(w, 0), na + tl.sum(w * alpha, 0), ne + tl.sum(w * eta, 0)
    return G, W, n, na, ne


@triton.jit
def step_gradients(M, U, G, W, n, na, ne, dM, dU, K, HAS_MOMENTUM: tl.constexpr):
    """The gradients of all that a step takes from those of M and U after it."""
    count = tl.maximum(n, 1e-4)
    alpha, eta = na / count, ne / count
    factor = 1 / tl.sqrt(tl.maximum(squares(G), 1.0))
    Z = W - product(G, M)
    moved = Z * factor
    if HAS_MOMENTUM:
        moved = eta * U + moved
    X = (1 - alpha) * M + moved
    excess = squares(X) / K
    shrink = 1 / tl.sqrt(tl.maximum(excess, 1.0))
    along = tl.sum(tl.sum(dM * X, 1), 0)
    dX = shrink * dM - tl.where(excess > 1, shrink * shrink * shrink / K * along, 0.0) * X
    d_alpha = -tl.sum(tl.sum(dX * M, 1), 0)
    d_eta = tl.sum(tl.sum(tl.zeros_like(dX), 1), 0)
    change = dX
    if HAS_MOMENTUM:
        change = dX + dU
        d_eta = tl.sum(tl.sum(change * U, 1), 0)
        dU = eta * change
    dZ = factor * change
    of_factor = tl.sum(tl.sum(change * Z, 1), 0)
    dG = -product(dZ, tl.trans(M))
    dG -= tl.where(squares(G) > 1, factor * factor * factor * of_factor, 0.0) * G
    dM = (1 - alpha) * dX - product(tl.trans(G), dZ)
    dn = tl.where(n > 1e-4, -(alpha * d_alpha + eta * d_eta) / count, 0.0)
    return dM, dU, dG, dZ, dn, d_alpha / count, d_eta / count


@triton.jit
def tile_gradients(
    query, key, value, rate, sharpness, decay, momentum, weight, read_grad, error_grad, used_grad,
    of_query, of_key, of_value, of_rate, of_decay, of_momentum, of_weight,
    M, dG, dW, dn, da, de, row, t, end, time, head, heads, K, V,
    HAS_SHARPNESS: tl.constexpr, HAS_MOMENTUM: tl.constexpr, HAS_READ: tl.constexpr, HAS_ERROR: tl.constexpr,
    HAS_USED: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of a tile's tokens; returns what they add to those of M and of the sharpness."""
    mask = t < end
    ck, cv, at = tl.arange(0, BK), tl.arange(0, BV), (row * time + t) * heads + head
    k, v, missed, size, error, w, s, gate = recall(
        key, value, rate, sharpness, weight, M, row, t, time, head, heads, K, V, mask, HAS_SHARPNESS, BK, BV
    )
    alpha, eta = tile_sums(decay, momentum, row, t, time, head, heads, w, mask, HAS_MOMENTUM)
    of_gram, of_written = product(k, dG + tl.trans(dG)), product(v, tl.trans(dW))
    dr = tl.sum(k * (0.5 * of_gram + of_written), 1)
    if HAS_USED:
        dr += tl.load(used_grad + at, mask=mask, other=0.0)
    of_logit = dr * w * gate * (1 - gate)
    of_error = of_logit * s / (1e-4 + error)
    if HAS_ERROR:
        of_error += tl.load(error_grad + at, mask=mask, other=0.0)
    bounded = tl.maximum(size, 1e-4)
    d_missed = (2 * of_error / bounded)[:, None] * missed
    of_size = tl.where(size > 1e-4, -2 * error / bounded * of_error, 0.0)
    r = (w * gate)[:, None]
    dk = r * (of_gram + of_written) + product(d_missed, tl.trans(M))
    dv = r * product(k, dW) - d_missed + of_size[:, None] * v
    dM = product(tl.trans(k), d_missed)
    in_key, in_value = mask[:, None] & (ck[None] < K), mask[:, None] & (cv[None] < V)
    dq = tl.zeros_like(k)
    if HAS_READ:
        q = vectors(query, row, t, time, head, heads, ck, K, mask)
        upstream = vectors(read_grad, row, t, time, head, heads, cv, V, mask)
        dM += product(tl.trans(q), upstream)
        dq = product(upstream, tl.trans(M))
    tl.store(of_query + at[:, None] * K + ck[None], dq, mask=in_key)
    tl.store(of_key + at[:, None] * K + ck[None], dk, mask=in_key)
    tl.store(of_value + at[:, None] * V + cv[None], dv, mask=in_value)
    tl.store(of_rate + at, of_logit, mask=mask)
    tl.store(of_decay + at, w * da, mask=mask)
    if HAS_MOMENTUM:
        tl.store(of_momentum + at, w * de, mask=mask)
    tl.store(of_weight + at, dr * gate + dn + da * alpha + de * eta, mask=mask)
    return dM, tl.sum(of_logit * tl.log(1e-4 + error), 0)


@triton.jit
def span_memory_backward(
    query, key, value, rate, sharpness, decay, momentum, weight, pending, tally, memories, velocities, starts, counts,
    read_grad, error_grad, used_grad, memory_grad, velocity_grad, pending_grad, tally_grad,
    of_query, of_key, of_value, of_rate, of_sharpness, of_decay, of_momentum, of_weight,
    of_memory, of_velocity, of_pending, of_tally, time, heads, segments, K, V,
    HAS_SHARPNESS: tl.constexpr, HAS_MOMENTUM: tl.constexpr, HAS_READ: tl.constexpr, HAS_ERROR: tl.constexpr,
    HAS_USED: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cell = row * heads + head
    ck, cv = tl.arange(0, BK), tl.arange(0, BV)
    square, wide = cell * K * V, cell * K * (K + V)
    dM = square_block(memory_grad, square, ck, cv, K, V, 0, V)
    dU = square_block(velocity_grad, square, ck, cv, K if HAS_MOMENTUM else 0, V, 0, V)
    dG = square_block(pending_grad, wide, ck, ck, K, K, 0, K + V)
    dW = square_block(pending_grad, wide, ck, cv, K, V, K, K + V)
    third = cell * 3
    dn, da, de = tl.load(tally_grad + third), tl.load(tally_grad + third + 1), tl.load(tally_grad + third + 2)
    ds = dn * 0
    last = tl.load(counts + cell)
    end = tl.program_id(0) * 0 + time
    for back in range(0, last + 1):
        segment = cell * segments + last - back
        M = square_block(memories, segment * K * V, ck, cv, K, V, 0, V)
        start = tl.load(starts + segment)
        for first in range(start, end, BT):
            more, of_s = tile_gradients(
                query, key, value, rate, sharpness, decay, momentum, weight, read_grad, error_grad, used_grad,
                of_query, of_key, of_value, of_rate, of_decay, of_momentum, of_weight,
                M, dG, dW, dn, da, de, row, first + tl.arange(0, BT), end, time, head, heads, K, V,
                HAS_SHARPNESS, HAS_MOMENTUM, HAS_READ, HAS_ERROR, HAS_USED, BK, BV,
            )  # fmt: skip
            dM += more
            ds += of_s
        if back < last:
            end = start
            first_of_all = back + 1 == last
            rows = tl.where(first_of_all, K, 0)
            M = square_block(memories, (segment - 1) * K * V, ck, cv, K, V, 0, V)
            U = square_block(velocities, (segment - 1) * K * V, ck, cv, K if HAS_MOMENTUM else 0, V, 0, V)
            G = square_block(pending, wide, ck, ck, rows, K, 0, K + V)
            W = square_block(pending, wide, ck, cv, rows, V, K, K + V)
            n = tl.load(tally + third, mask=first_of_all, other=0.0)
            na = tl.load(tally + third + 1, mask=first_of_all, other=0.0)
            ne = tl.load(tally + third + 2, mask=first_of_all, other=0.0)
            G, W, n, na, ne = segment_sums(
                key, value, rate, sharpness, decay, momentum, weight, M, G, W, n, na, ne,
                row, tl.load(starts + segment - 1), end, time, head, heads, K, V,
                HAS_SHARPNESS, HAS_MOMENTUM, BT, BK, BV,
            )  # fmt: skip
            dM, dU, dG, dW, dn, da, de = step_gradients(M, U, G, W, n, na, ne, dM, dU, K, HAS_MOMENTUM)
    store_block(of_memory, square, ck, cv, K, V, 0, V, dM)
    if HAS_MOMENTUM:
        store_block(of_velocity, square, ck, cv, K, V, 0, V, dU)
    store_block(of_pending, wide, ck, ck, K, K, 0, K + V, dG)
    store_block(of_pending, wide, ck, cv, K, V, K, K + V, dW)
    tl.store(of_tally + third, dn)
    tl.store(of_tally + third + 1, da)
    tl.store(of_tally + third + 2, de)
    tl.store(of_sharpness + cell, ds)

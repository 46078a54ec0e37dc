"""Triton: the gradients of the slot memory, a program for each row and head. Imports Triton.

From the last frame to the first: the tick is undone, then the frame's reads add to the gradient of the bank, token by
token, since several may read one slot and sums are to have one order. `bank` and `bank_grad` are written in place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from synthe_core.ops.slot_memory.triton_kernels import entries, product, remainders, same_slot, strengths


@triton.jit
def store_entries(of_token, of_pending, row, head, place, offset, end, time, heads, C, skip, width, size, channel, x):
    """The gradients [BP, BS] of a frame's vectors, to where `entries` has them from."""
    t = place - offset
    inside = channel[None] < size
    before = of_pending + ((row * C + place[:, None]) * heads + head) * width + skip + channel[None]
    now = of_token + ((row * time + t[:, None]) * heads + head) * size + channel[None]
    tl.store(before, x, mask=((place < offset) & (place < C))[:, None] & inside)
    tl.store(now, x, mask=((t >= 0) & (t < time))[:, None] & inside)


@triton.jit
def store_strengths(of_strength, of_pending_strength, row, head, place, offset, time, heads, C, x):
    """The gradients [BP] of strengths, of each head by itself."""
    t, cell = place - offset, row * heads + head
    tl.store(of_pending_strength + cell * C + place, x, mask=(place < offset) & (place < C))
    tl.store(of_strength + cell * time + t, x, mask=(t >= 0) & (t < time))


@triton.jit
def undo_part(
    token, pending, of_token, of_pending, bank, bank_grad, before, row, head, tick, target, overwrites, share, keep,
    scale, place, offset, end, time, heads, J, C, skip, width, size, channel,
):  # fmt: skip
    """Keys or contents of one head before a tick, and their gradients. Returns those of `share` [BC, BC] and `keep`
    [BC], and g·x of the overwriting tokens [BC]."""
    at = ((row * J + target[:, None]) * heads + head) * width + skip + channel[None]
    mask = (target < J)[:, None] & (channel < size)[None]
    c = tl.arange(0, place.shape[0])
    saved = before + ((tick * C + c[:, None]) * heads + head) * width + skip + channel[None]
    was = tl.load(saved, mask=mask, other=0.0)
    record = entries(token, pending, row, head, place, offset, time, heads, C, skip, width, size, channel)
    g = tl.load(bank_grad + at, mask=mask, other=0.0)
    replaced = (overwrites > 0)[:, None]
    refined = tl.where(replaced, 0.0, g)
    of_record = tl.where(replaced, scale[:, None] * g, 0.0) + product(tl.trans(share), refined)
    store_entries(
        of_token, of_pending, row, head, place, offset, end, time, heads, C, skip, width, size, channel, of_record
    )  # fmt: skip
    tl.debug_barrier()
    tl.store(bank + at, was, mask=mask)
    tl.store(bank_grad + at, keep[:, None] * refined, mask=mask)
    of_share = product(refined, tl.trans(record))
    return of_share, tl.sum(refined * was, 1), tl.sum(tl.where(replaced, g * record, 0.0), 1)


@triton.jit
def undo_tick(
    key, value, strength, pending, pending_strength, of_key, of_value, of_pending, of_strength, of_pending_strength,
    bank, bank_grad, before, target_in, refines_in, overwrites_in, row, head, tick, first, offset, end,
    time, heads, J, C, K, V, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    c, ck, cv = tl.arange(0, BC), tl.arange(0, BK), tl.arange(0, BV)
    inside = c < C
    target = tl.load(target_in + tick * C + c, mask=inside, other=J)
    refines = tl.load(refines_in + tick * C + c, mask=inside, other=-1)
    overwrites = tl.load(overwrites_in + tick * C + c, mask=inside, other=0)
    place = tl.where(inside, first + c, time + offset + C)
    s = strengths(strength, pending_strength, row, place, offset, end, time, C)
    left, keep = remainders(refines, s)
    share = left * s[None]
    of_share, of_keep, _ = undo_part(
        key, pending, of_key, of_pending, bank, bank_grad, before, row, head, tick, target, overwrites, share, keep,
        s * 0 + 1, place, offset, end, time, heads, J, C, 0, K + V, K, ck,
    )  # fmt: skip
    more, more_keep, of_s = undo_part(
        value, pending, of_value, of_pending, bank, bank_grad, before, row, head, tick, target, overwrites, share, keep,
        s, place, offset, end, time, heads, J, C, K, K + V, V, cv,
    )  # fmt: skip
    of_share, of_keep = of_share + more, of_keep + more_keep
    weighted = of_share * share
    of_left = tl.cumsum(weighted, 1) - weighted + (of_keep * keep)[:, None]
    of_s += tl.sum(of_share * left, 0)
    of_s -= tl.sum(tl.where(same_slot(refines), of_left, 0.0), 0) / (1 - s)
    store_strengths(of_strength, of_pending_strength, row, head, place, offset, time, heads, C, of_s)


@triton.jit
def pass_through(
    of_key, of_value, of_pending, of_strength, of_pending_strength, pending_grad, pending_strength_grad,
    row, head, n, first, offset, end, time, heads, C, K, V, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradients of tokens behind the last tick, which are pending afterwards; zeros at padding."""
    c, ck, cv = tl.arange(0, BC), tl.arange(0, BK), tl.arange(0, BV)
    inside = c < C
    place = tl.where(inside, first + c, time + offset + C)
    real = inside & (place < end) & (n == end // C)
    s = tl.load(pending_strength_grad + row * C + c, mask=real & (head == 0), other=0.0)
    store_strengths(of_strength, of_pending_strength, row, head, place, offset, time, heads, C, s)
    at = ((row * C + c[:, None]) * heads + head) * (K + V)
    k = tl.load(pending_grad + at + ck[None], mask=real[:, None] & (ck < K)[None], other=0.0)
    v = tl.load(pending_grad + at + K + cv[None], mask=real[:, None] & (cv < V)[None], other=0.0)
    store_entries(of_key, of_pending, row, head, place, offset, end, time, heads, C, 0, K + V, K, ck, k)
    store_entries(of_value, of_pending, row, head, place, offset, end, time, heads, C, K, K + V, V, cv, v)


@triton.jit
def undo_read(
    query, of_query, bank, bank_grad, weights, slots, read_grad, weight_grad, row, head, t, time, heads, J, K, V,
    READS: tl.constexpr, SPARSE: tl.constexpr, HAS_READ: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    ck, cv, cn = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BN)
    at, used = (row * time + t) * heads + head, cn < READS
    w = tl.load(weights + at * READS + cn, mask=used, other=0.0)
    slot = tl.load(slots + at * READS + cn, mask=used, other=0)
    record = ((row * J + slot[:, None]) * heads + head) * (K + V)
    to_key, to_value = record + ck[None], record + K + cv[None]
    in_key, in_value = used[:, None] & (ck < K)[None], used[:, None] & (cv < V)[None]
    of_w = w * 0
    if HAS_WEIGHT:
        of_w += tl.load(weight_grad + at * READS + cn, mask=used, other=0.0)
    if HAS_READ:
        g = tl.load(read_grad + at * V + cv, mask=cv < V, other=0.0)
        of_w += tl.sum(tl.load(bank + to_value, mask=in_value, other=0.0) * g[None], 1)
        value_grad = tl.load(bank_grad + to_value, mask=in_value, other=0.0)
        tl.store(bank_grad + to_value, value_grad + w[:, None] * g[None], mask=in_value)
    if SPARSE:
        chosen = w > 0
        mean = tl.sum(tl.where(chosen, of_w, 0.0), 0) / tl.sum(tl.where(chosen, 1.0, 0.0).to(w.dtype), 0)
        of_logit = tl.where(chosen, of_w - mean, 0.0)
    else:
        of_logit = w * (of_w - tl.sum(w * of_w, 0))
    q = tl.load(query + at * K + ck, mask=ck < K, other=0.0)
    of_q = tl.sum(of_logit[:, None] * tl.load(bank + to_key, mask=in_key, other=0.0), 0)
    tl.store(of_query + at * K + ck, of_q, mask=ck < K)
    key_grad = tl.load(bank_grad + to_key, mask=in_key, other=0.0)
    tl.store(bank_grad + to_key, key_grad + of_logit[:, None] * q[None], mask=in_key)


@triton.jit
def slot_memory_backward(
    query, key, value, strength, pending, pending_strength, start, lengths, weights, slots,
    before, target, refines, overwrites, bank, bank_grad, read_grad, weight_grad, pending_grad, pending_strength_grad,
    of_query, of_key, of_value, of_strength, of_pending, of_pending_strength, time, heads, J, C, K, V, ticks,
    READS: tl.constexpr, SPARSE: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_READ: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offset = (tl.load(start + row) % C).to(tl.int32)
    end = offset + time
    if HAS_LENGTHS:
        end = offset + tl.load(lengths + row).to(tl.int32)
    frames = (offset + time - 1) // C + 1
    for back in range(0, frames):
        n = frames - 1 - back
        first = n * C
        if end >= first + C:
            undo_tick(
                key, value, strength, pending, pending_strength, of_key, of_value, of_pending, of_strength,
                of_pending_strength, bank, bank_grad, before, target, refines, overwrites, row, head, row * ticks + n,
                first, offset, end, time, heads, J, C, K, V, BC, BK, BV,
            )  # fmt: skip
        else:
            pass_through(
                of_key, of_value, of_pending, of_strength, of_pending_strength, pending_grad, pending_strength_grad,
                row, head, n, first, offset, end, time, heads, C, K, V, BC, BK, BV,
            )  # fmt: skip
        tl.debug_barrier()
        for t in range(tl.maximum(first - offset, 0), tl.minimum(first + C - offset, time)):
            undo_read(
                query, of_query, bank, bank_grad, weights, slots, read_grad, weight_grad, row, head, t,
                time, heads, J, K, V, READS, SPARSE, HAS_READ, HAS_WEIGHT, BK, BV, BN,
            )  # fmt: skip
            tl.debug_barrier()

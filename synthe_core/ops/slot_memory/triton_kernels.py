"""Triton: the slot memory, a program for each row, which walks from frame to frame with the bank in place. Imports
Triton.

Frames of C places are aligned with the row's clock, as in the chunked kernel: a place P stands for pending token P
before `offset`, and for token P - offset of this pass from there on. The ages stay in registers, a number a slot; the
bank, the logits of a tile and the plan of a tick lie in memory that only this program writes, with barriers between.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def mixed(x):
    """SplitMix64's finalizer."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def gumbel(seed, row, position, choice, like):
    """-log(-log u) [BT, BJ] for positions [BT] and choices [BJ]."""
    token = mixed(mixed(seed + (row + 1) * -0x61C8864680B583EB) + position * -0x61C8864680B583EB)
    bits = mixed(token[:, None] + choice.to(tl.int64)[None] * -0x61C8864680B583EB)
    uniform = (((bits >> 41) & 0x7FFFFF).to(like.dtype) + 0.5) / 8388608.0
    return -tl.log(-tl.log(uniform))


@triton.jit
def entries(token, pending, row, head, place, offset, time, heads, C, skip, width, size, channel):
    """A frame's vectors [BP, BS] of a head: from `pending` [B, C, H, width], behind its first `skip` numbers, and from
    `token` [B, T, H, size]; zeros where neither is."""
    t = place - offset
    early = (place < offset) & (place < C)
    before = pending + ((row * C + place[:, None]) * heads + head) * width + skip + channel[None]
    now = token + ((row * time + t[:, None]) * heads + head) * size + channel[None]
    inside = channel[None] < size
    x = tl.load(before, mask=early[:, None] & inside, other=0.0)
    return x + tl.load(now, mask=((t >= 0) & (t < time))[:, None] & inside, other=0.0)


@triton.jit
def strengths(strength, pending_strength, row, place, offset, end, time, C):
    t = place - offset
    s = tl.load(pending_strength + row * C + place, mask=(place < offset) & (place < C), other=0.0)
    return s + tl.load(strength + row * time + t, mask=(t >= 0) & (place < end), other=0.0)


@triton.jit
def slot_keys(bank, row, j, head, heads, J, K, width, channel):
    """Keys of slots, transposed: [BK, BS]."""
    at = ((row * J + j[None]) * heads + head) * width + channel[:, None]
    return tl.load(bank + at, mask=(j[None] < J) & (channel[:, None] < K), other=0.0)


@triton.jit
def routed(highest, cn, READS: tl.constexpr, SPARSE: tl.constexpr):
    """The weights [BT, BN] of the READS largest logits, in descending order."""
    used = (cn < READS)[None]
    if SPARSE:
        z = tl.where(used, highest, 0.0)
        excess = tl.cumsum(z, 1) - 1
        rank = (cn + 1).to(z.dtype)[None]
        support = tl.sum(tl.where(used & (rank * z > excess), 1, 0), 1)
        at = tl.sum(tl.where(cn[None] == support[:, None] - 1, excess, 0.0), 1)
        w = z - (at / support.to(z.dtype))[:, None]
        return tl.where(used & (w > 0), w, 0.0)
    w = tl.where(used, tl.exp(highest - tl.max(highest, 1)[:, None]), 0.0)
    return w / tl.sum(w, 1)[:, None]


@triton.jit
def read_tile(
    query, bank, read, weights, slots, scores, row, head, t, real, later, rate, position, seed, share, since,
    time, heads, J, K, V,
    READS: tl.constexpr, SPARSE: tl.constexpr, NOISE: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The reads of a tile's tokens by one head; returns the shares [BJ] with theirs, and the latest reads."""
    ck, cv, cn, cj = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BN), tl.arange(0, BJ)
    i = tl.arange(0, BT)
    valid = (t >= 0) & (t < time)
    at = (row * time + t) * heads + head
    q = tl.load(query + at[:, None] * K + ck[None], mask=valid[:, None] & (ck < K)[None], other=0.0)
    tl.debug_barrier()
    for first in range(0, J, BS):
        j = first + tl.arange(0, BS)
        x = product(q, slot_keys(bank, row, j, head, heads, J, K, K + V, ck))
        tl.store(scores + (row * BT + i[:, None]) * J + j[None], x, mask=(j < J)[None])
    tl.debug_barrier()
    x = tl.load(scores + (row * BT + i[:, None]) * J + cj[None], mask=(cj < J)[None], other=float("-inf"))
    if NOISE:
        x += gumbel(seed, row, position + t, head * J + cj, x)
    highest = tl.zeros([BT, BN], dtype=x.dtype) + float("-inf")
    chosen = tl.zeros([BT, BN], dtype=tl.int32)
    for n in range(READS):
        top = tl.max(x, 1)
        slot = tl.minimum(tl.min(tl.where(x == top[:, None], cj[None], BJ), 1), J - 1)
        highest = tl.where(cn[None] == n, top[:, None], highest)
        chosen = tl.where(cn[None] == n, slot[:, None], chosen)
        x = tl.where(cj[None] == slot[:, None], float("-inf"), x)
    w = routed(highest, cn, READS, SPARSE)
    out = tl.zeros([BT, BV], dtype=x.dtype)
    for n in range(READS):
        here = tl.sum(tl.where(cn[None] == n, w, 0.0), 1)
        slot = tl.sum(tl.where(cn[None] == n, chosen, 0), 1)
        content = bank + ((row * J + slot[:, None]) * heads + head) * (K + V) + K + cv[None]
        out += here[:, None] * tl.load(content, mask=valid[:, None] & (cv < V)[None], other=0.0)
        hit = cj[None] == slot[:, None]
        share += tl.sum(tl.where(hit, (here * rate)[:, None], 0.0), 0)
        moment = tl.where(hit & (real & (here > 0))[:, None], later[:, None], float("inf"))
        since = tl.minimum(since, tl.min(moment, 0))
    tl.store(read + at[:, None] * V + cv[None], out, mask=valid[:, None] & (cv < V)[None])
    stored = valid[:, None] & (cn < READS)[None]
    tl.store(weights + at[:, None] * READS + cn[None], w, mask=stored)
    tl.store(slots + at[:, None] * READS + cn[None], chosen.to(tl.int64), mask=stored)
    return share, since


@triton.jit
def match_tile(
    key, pending, bank, affinity, novelty, matches, nearest_slot, row, place, first, offset, time, heads, J, C, K, V,
    BT: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Of a tile's tokens the largest affinity to a slot, that slot, and the largest to an earlier token there."""
    ck, c = tl.arange(0, BK), tl.arange(0, BC)
    near = tl.zeros([BT, BC], dtype=matches.dtype.element_ty)
    for head in range(0, heads):
        mine = entries(key, pending, row, head, place, offset, time, heads, C, 0, K + V, K, ck)
        frame = entries(key, pending, row, head, first + c, offset, time, heads, C, 0, K + V, K, ck)
        near += product(mine, tl.trans(frame))
    earlier = (first + c)[None] < place[:, None]
    nearest = tl.max(tl.where(earlier, near / heads, -2.0), 1)
    best = tl.max(near * 0, 1) + float("-inf")
    slot = place * 0
    for start in range(0, J, BS):
        j = start + tl.arange(0, BS)
        x = tl.zeros([BT, BS], dtype=matches.dtype.element_ty)
        for head in range(0, heads):
            mine = entries(key, pending, row, head, place, offset, time, heads, C, 0, K + V, K, ck)
            x += product(mine, slot_keys(bank, row, j, head, heads, J, K, K + V, ck))
        x = tl.where((j < J)[None], x, float("-inf"))
        top = tl.max(x, 1)
        where = tl.minimum(tl.min(tl.where(x == top[:, None], j[None], J), 1), J - 1)
        slot = tl.where(top > best, where, slot)
        best = tl.maximum(top, best)
    best = best / heads
    inside = place < first + C
    at = row * 2 * BC + place - first
    tl.store(matches + at, best, mask=inside)
    tl.store(matches + at + BC, nearest, mask=inside)
    tl.store(nearest_slot + row * BC + place - first, slot, mask=inside)
    t = place - offset
    valid = (t >= 0) & (t < time) & inside
    tl.store(affinity + row * time + t, best, mask=valid)
    tl.store(novelty + row * time + t, 1 - tl.maximum(best, nearest), mask=valid)


@triton.jit
def same_slot(refines):
    """[BC, BC]: both tokens refine the same slot."""
    return (refines[:, None] == refines[None]) & (refines >= 0)[:, None]


@triton.jit
def remainders(refines, s):
    """What later tokens leave of a token's part in the slot that it refines [BC, BC], and of the old record [BC]."""
    same = same_slot(refines)
    left = tl.where(same, tl.log(1 - s)[None], 0.0)
    later = tl.cumsum(left, 1, reverse=True) - left
    return tl.where(same, tl.exp(later), 0.0), tl.exp(tl.sum(left, 1))


@triton.jit
def plan(
    matches, nearest_slot, target_out, refines_out, overwrites_out, row, at, s, worth, J, C, match,
    WRITES: tl.constexpr, BC: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """What a tick writes, stored at `at`. Returns the strength that each slot gets, which slots are refined, and which
    are replaced, all [BJ]."""
    c, cj = tl.arange(0, BC), tl.arange(0, BJ)
    inside = c < C
    affinity = tl.load(matches + row * 2 * BC + c, mask=inside, other=-2.0)
    nearest = tl.load(matches + row * 2 * BC + BC + c, mask=inside, other=2.0)
    refine = inside & (affinity >= match)
    novel = inside & (affinity < match) & (nearest < match)
    refines = tl.where(refine, tl.load(nearest_slot + row * BC + c, mask=inside, other=0), -1)
    tl.store(refines_out + at + c, refines, mask=inside)
    tl.debug_barrier()
    mass, refined = worth * 0, cj * 0
    for i in range(0, C):
        hit = cj == tl.load(refines_out + at + i)
        mass += tl.where(hit, tl.sum(tl.where(c == i, s, 0.0), 0), 0.0)
        refined = tl.where(hit, 1, refined)
    last = refine & (tl.max(tl.where(same_slot(refines) & (c[None] > c[:, None]), 1, 0), 1) == 0)
    target = tl.where(last, refines, J)
    novelty = tl.where(novel, 1 - tl.maximum(affinity, nearest), float("-inf"))
    worth = tl.where((refined > 0) | (cj >= J), float("inf"), worth)
    overwrites, replaced = c * 0, cj * 0
    for _ in range(WRITES):
        top, low = tl.max(novelty, 0), tl.min(worth, 0)
        # Where there is no more novel token, or no more slot, neither is any place.
        token = tl.min(tl.where((novelty == top) & (novelty > float("-inf")), c, BC), 0)
        slot = tl.min(tl.where((worth == low) & (worth < float("inf")), cj, BJ), 0)
        token, slot = tl.where(slot < BJ, token, BC), tl.where(token < BC, slot, BJ)
        target = tl.where(c == token, slot, target)
        overwrites = tl.where(c == token, 1, overwrites)
        replaced = tl.where(cj == slot, 1, replaced)
        mass += tl.where(cj == slot, tl.sum(tl.where(c == token, s, 0.0), 0), 0.0)
        novelty = tl.where(c == token, float("-inf"), novelty)
        worth = tl.where(cj == slot, float("inf"), worth)
    tl.store(target_out + at + c, target, mask=inside)
    tl.store(overwrites_out + at + c, overwrites, mask=inside)
    return mass, refined, replaced


@triton.jit
def write_part(
    token, pending, bank, before, row, head, tick, target, overwrites, share, keep, scale, place, offset,
    time, heads, J, C, skip, width, size, channel, SAVE: tl.constexpr,
):  # fmt: skip
    """Keys or contents of one head after a tick; `scale` is what an overwriting token's are multiplied by."""
    old = bank + ((row * J + target[:, None]) * heads + head) * width + skip + channel[None]
    mask = (target < J)[:, None] & (channel < size)[None]
    record = entries(token, pending, row, head, place, offset, time, heads, C, skip, width, size, channel)
    was = tl.load(old, mask=mask, other=0.0)
    refined = keep[:, None] * was + product(share, record)
    tl.store(old, tl.where((overwrites > 0)[:, None], scale[:, None] * record, refined), mask=mask)
    if SAVE:
        at = ((tick * C + tl.arange(0, place.shape[0])[:, None]) * heads + head) * width + skip + channel[None]
        tl.store(before + at, was, mask=mask)


@triton.jit
def write(
    key, value, pending, bank, before, target_in, refines_in, overwrites_in, row, tick, at, s, first, offset,
    time, heads, J, C, K, V, SAVE: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    c, ck, cv = tl.arange(0, BC), tl.arange(0, BK), tl.arange(0, BV)
    inside = c < C
    target = tl.load(target_in + at + c, mask=inside, other=J)
    overwrites = tl.load(overwrites_in + at + c, mask=inside, other=0)
    left, keep = remainders(tl.load(refines_in + at + c, mask=inside, other=-1), s)
    share = left * s[None]
    place = tl.where(inside, first + c, time + offset + C)
    for head in range(0, heads):
        write_part(
            key, pending, bank, before, row, head, tick, target, overwrites, share, keep, s * 0 + 1, place, offset,
            time, heads, J, C, 0, K + V, K, ck, SAVE,
        )  # fmt: skip
        write_part(
            value, pending, bank, before, row, head, tick, target, overwrites, share, keep, s, place, offset,
            time, heads, J, C, K, K + V, V, cv, SAVE,
        )  # fmt: skip


@triton.jit
def store_pending(
    key, value, strength, pending, pending_strength, pending_out, strength_out, row, offset, end, time, heads, C, K, V,
    BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The tokens behind the last tick, and zeros behind them."""
    c, ck, cv = tl.arange(0, BC), tl.arange(0, BK), tl.arange(0, BV)
    place = end // C * C + c
    inside = c < C
    place = tl.where(inside & (place < end), place, time + offset + C)
    s = strengths(strength, pending_strength, row, place, offset, end, time, C)
    tl.store(strength_out + row * C + c, s, mask=inside)
    for head in range(0, heads):
        at = ((row * C + c[:, None]) * heads + head) * (K + V)
        k = entries(key, pending, row, head, place, offset, time, heads, C, 0, K + V, K, ck)
        v = entries(value, pending, row, head, place, offset, time, heads, C, K, K + V, V, cv)
        tl.store(pending_out + at + ck[None], k, mask=inside[:, None] & (ck < K)[None])
        tl.store(pending_out + at + K + cv[None], v, mask=inside[:, None] & (cv < V)[None])


@triton.jit
def store_ages(age, mask, since_read, since_write, read_use, write_use):
    tl.store(age, since_read, mask=mask)
    tl.store(age + 1, since_write, mask=mask)
    tl.store(age + 2, read_use, mask=mask)
    tl.store(age + 3, write_use, mask=mask)


@triton.jit
def frame_reads(
    query, key, pending, bank, read, weights, slots, affinity, novelty, scores, matches, nearest_slot,
    row, begin, seed, first, last, offset, full, like, time, heads, J, C, K, V, log_decay: tl.constexpr,
    fair: tl.constexpr, READS: tl.constexpr, SPARSE: tl.constexpr, NOISE: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """The reads of a frame's tokens up to place `last`, and their affinities, for a tick those of pending ones too.
    Returns the share of reads that each slot got, and how many tokens ago it was last read, infinity for never."""
    share, since = like * 0, like * 0 + float("inf")
    for p in range(0, C, BT):
        within = p + tl.arange(0, BT)
        place = tl.where(within < C, first + within, time + offset + C)
        of_this_pass = (first + p + BT > offset) & (first + p < offset + time)
        if of_this_pass:
            real = (place >= offset) & (place < last)
            later = (last - 1 - place).to(like.dtype)
            rate = tl.where(real, tl.exp(log_decay * later) * fair / heads, 0.0)
            for head in range(0, heads):
                share, since = read_tile(
                    query, bank, read, weights, slots, scores, row, head, place - offset, real, later, rate, begin,
                    seed, share, since, time, heads, J, K, V, READS, SPARSE, NOISE, BT, BS, BJ, BK, BV, BN,
                )  # fmt: skip
        if of_this_pass | full:
            match_tile(
                key, pending, bank, affinity, novelty, matches, nearest_slot, row, place, first, offset,
                time, heads, J, C, K, V, BT, BC, BS, BK,
            )  # fmt: skip
    return share, since


@triton.jit(do_not_specialize=["seed"])
def slot_memory_forward(
    query, key, value, strength, bank, ages, pending, pending_strength, start, lengths,
    read, weights, slots, affinity, novelty, pending_out, strength_out,
    scores, matches, nearest_slot, before, target, refines, overwrites,
    time, heads, J, C, K, V, ticks, seed,
    log_decay: tl.constexpr, fair: tl.constexpr, match: tl.constexpr, penalty: tl.constexpr,
    READS: tl.constexpr, WRITES: tl.constexpr, SPARSE: tl.constexpr, NOISE: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    SAVE: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(start + row)
    offset = (begin % C).to(tl.int32)
    end = offset + time
    if HAS_LENGTHS:
        end = offset + tl.load(lengths + row).to(tl.int32)
    cj, c = tl.arange(0, BJ), tl.arange(0, BC)
    age, some = ages + (row * J + cj) * 4, cj < J
    since_read, since_write = tl.load(age, mask=some, other=0.0), tl.load(age + 1, mask=some, other=0.0)
    read_use, write_use = tl.load(age + 2, mask=some, other=0.0), tl.load(age + 3, mask=some, other=0.0)
    for n in range(0, (offset + time - 1) // C + 1):
        first = n * C
        full = end >= first + C
        last = tl.minimum(end, first + C)
        share, since = frame_reads(
            query, key, pending, bank, read, weights, slots, affinity, novelty, scores, matches, nearest_slot,
            row, begin, seed, first, last, offset, full, read_use, time, heads, J, C, K, V, log_decay, fair,
            READS, SPARSE, NOISE, BT, BC, BS, BJ, BK, BV, BN,
        )  # fmt: skip
        count = tl.maximum(last - tl.maximum(offset, first), 0).to(read_use.dtype)
        fade = tl.exp(log_decay * count)
        since_read, since_write = tl.minimum(since, since_read + count), since_write + count
        read_use, write_use = fade * read_use + share, fade * write_use
        tl.debug_barrier()
        if full:
            tick = row * ticks + n
            place = tl.where(c < C, first + c, end)
            s = strengths(strength, pending_strength, row, place, offset, end, time, C)
            worth = read_use + write_use - penalty * tl.minimum(since_read, since_write)
            mass, refined, replaced = plan(
                matches, nearest_slot, target, refines, overwrites, row, tick * C, s, worth, J, C, match,
                WRITES, BC, BJ,
            )  # fmt: skip
            tl.debug_barrier()
            write(
                key, value, pending, bank, before, target, refines, overwrites, row, tick, tick * C, s, first, offset,
                time, heads, J, C, K, V, SAVE, BC, BK, BV,
            )  # fmt: skip
            since_read = tl.where(replaced > 0, 0.0, since_read)
            since_write = tl.where((replaced > 0) | (refined > 0), 0.0, since_write)
            read_use = tl.where(replaced > 0, 1.0, read_use)
            write_use += fair * mass
            tl.debug_barrier()
    store_ages(age, some, since_read, since_write, read_use, write_use)
    store_pending(
        key, value, strength, pending, pending_strength, pending_out, strength_out, row, offset, end,
        time, heads, C, K, V, BC, BK, BV,
    )  # fmt: skip

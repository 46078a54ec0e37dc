"""Triton: the running maximum behind an mLSTM's scale. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def compose_maximum(step, value, next_step, next_value):
    """Two tokens m -> max(m + step, value), one after the other, as one."""
    return step + next_step, tl.maximum(value + next_step, next_value)


@triton.jit
def running_maximum_kernel(value, step, first, m, time, heads, BT: tl.constexpr, BH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    inside = head < heads
    token = tl.arange(0, BT)[:, None]
    carry = tl.load(first + row * heads + head, mask=inside, other=0.0)
    for start in range(0, time, BT):
        t = start + token
        mask = (t < time) & inside[None]
        at = (row * time + t) * heads + head[None]
        s = tl.load(step + at, mask=mask, other=0.0)
        x = tl.load(value + at, mask=mask, other=-float("inf"))
        reach, inner = tl.associative_scan((s, x), 0, compose_maximum)
        out = tl.maximum(carry[None] + reach, inner)
        tl.store(m + at, out, mask=mask)
        carry = tl.sum(tl.where(token == BT - 1, out, 0.0), 0)

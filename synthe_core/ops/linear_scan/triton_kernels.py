"""Triton: the linear scan of tiles of time by channels, the state carried from tile to tile. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def compose(decay, value, next_decay, next_value):
    """Two steps h -> decay h + value, one after the other, as one."""
    return next_decay * decay, next_decay * value + next_value


@triton.jit
def coefficients(decay, value, at, mask, GATED: tl.constexpr):
    """The decays and inputs of a tile; of the gated average σ(gate) and σ(-gate) ⊙ value."""
    a = tl.load(decay + at, mask=mask, other=0.0)
    v = tl.load(value + at, mask=mask, other=0.0)
    if GATED:
        return 1 / (1 + tl.exp(-a)), v / (1 + tl.exp(a))
    return a, v


@triton.jit
def scan_forward(
    decay, value, state, h, last, time, width,
    GATED: tl.constexpr, HAS_STATE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = channel < width
    step = tl.arange(0, BT)[:, None]
    carry = tl.zeros([BD], dtype=h.dtype.element_ty)
    if HAS_STATE:
        carry = tl.load(state + row * width + channel, mask=inside, other=0.0)
    for start in range(0, time, BT):
        t = start + step
        mask = (t < time) & inside[None]
        at = (row * time + t) * width + channel[None]
        a, v = coefficients(decay, value, at, mask, GATED)
        a, v = tl.where(mask, a, 1.0), tl.where(mask, v, 0.0)
        reach, inner = tl.associative_scan((a, v), 0, compose)
        out = inner + reach * carry[None]
        tl.store(h + at, out, mask=mask)
        carry = tl.sum(tl.where(step == BT - 1, out, 0.0), 0)
    tl.store(last + row * width + channel, carry, mask=inside)


@triton.jit
def scan_backward(
    decay, value, state, h, h_grad, last_grad, decay_grad, value_grad, state_grad, time, width,
    GATED: tl.constexpr, HAS_STATE: tl.constexpr, HAS_H: tl.constexpr, HAS_LAST: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = channel < width
    step = tl.arange(0, BT)[:, None]
    carry = tl.zeros([BD], dtype=h.dtype.element_ty)  # the gradient of h behind the tile
    if HAS_LAST:
        carry = tl.load(last_grad + row * width + channel, mask=inside, other=0.0)
    tiles = tl.cdiv(time, BT)
    for index in range(0, tiles):
        t = (tiles - 1 - index) * BT + step
        mask = (t < time) & inside[None]
        at = (row * time + t) * width + channel[None]
        following = coefficients(decay, value, at + width, (t + 1 < time) & inside[None], GATED)[0]
        following = tl.where((t + 1 < time) & inside[None], following, 1.0)
        seed = tl.zeros([BT, BD], dtype=h.dtype.element_ty)
        if HAS_H:
            seed = tl.load(h_grad + at, mask=mask, other=0.0)
        reach, inner = tl.associative_scan((following, seed), 0, compose, reverse=True)
        adjoint = inner + reach * carry[None]
        before = tl.load(h + at - width, mask=mask & (t > 0), other=0.0)
        if HAS_STATE:
            first = tl.load(state + row * width + channel, mask=inside, other=0.0)
            before = tl.where(t == 0, first[None], before)
        a = tl.load(decay + at, mask=mask, other=0.0)
        if GATED:
            v = tl.load(value + at, mask=mask, other=0.0)
            gate, rest = 1 / (1 + tl.exp(-a)), 1 / (1 + tl.exp(a))
            tl.store(decay_grad + at, adjoint * (before - v) * gate * rest, mask=mask)
            tl.store(value_grad + at, adjoint * rest, mask=mask)
            a = gate
        else:
            tl.store(decay_grad + at, adjoint * before, mask=mask)
            tl.store(value_grad + at, adjoint, mask=mask)
        carry = tl.sum(tl.where(step == 0, adjoint, 0.0), 0)
        if HAS_STATE:
            first_grad = tl.sum(tl.where(t == 0, adjoint * a, 0.0), 0)
            tl.store(state_grad + row * width + channel, first_grad, mask=inside)  # the last tile is that of t = 0

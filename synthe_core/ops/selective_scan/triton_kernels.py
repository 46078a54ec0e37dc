"""Triton: the selective scan of tiles of time by channels by numbers of state. Imports Triton.

The states *before* a tile's tokens come out of a scan of the tokens before them, so that nothing has to be moved from
one register to the next. The backward pass computes them again from the state before the tile. There the gradient that
is carried from a tile to the one before it is of the state before the tile, so that no tile needs another's decays.
"""

from __future__ import annotations

import triton
import triton.language as tl

from synthe_core.ops.linear_scan.triton_kernels import compose


@triton.jit
def decays(delta, rates, row, t, time, channels, channel, start, end):
    """exp(Δ A) of the tokens start <= t < end, and 1 for others; and Δ, 0 for others."""
    mask = (t >= start) & (t < end) & (t < time) & (channel < channels)[None, :, None]
    step = tl.load(delta + (row * time + t) * channels + channel[None, :, None], mask=mask, other=0.0)
    return tl.exp(step * rates[None]), step


@triton.jit
def of_token(x, row, t, time, size, number, start):
    """What all channels share of a token, B or C, [BT, 1, BN]."""
    mask = (t >= start) & (t < time) & (number < size)[None, None]
    return tl.load(x + (row * time + t) * size + number[None, None], mask=mask, other=0.0)


@triton.jit
def of_channel(x, row, t, time, channels, channel, start):
    """What all numbers of state share of a token and channel, [BT, BE, 1]."""
    mask = (t >= start) & (t < time) & (channel < channels)[None, :, None]
    return tl.load(x + (row * time + t) * channels + channel[None, :, None], mask=mask, other=0.0)


@triton.jit
def selective_scan_forward(
    x, delta, A, B, C, D, state, y, h, saved, time, channels, size,
    HAS_STATE: tl.constexpr, SAVE: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel, number = tl.program_id(1) * BE + tl.arange(0, BE), tl.arange(0, BN)
    step = tl.arange(0, BT)[:, None, None]
    inside = (channel < channels)[:, None] & (number < size)[None]
    place = channel[:, None] * size + number[None]
    rates = tl.load(A + place, mask=inside, other=0.0)
    through = tl.load(D + channel, mask=channel < channels, other=0.0)
    carry = tl.zeros([BE, BN], dtype=y.dtype.element_ty)
    if HAS_STATE:
        carry = tl.load(state + row * channels * size + place, mask=inside, other=0.0)
    tiles = tl.cdiv(time, BT)
    for index in range(0, tiles):
        if SAVE:
            tl.store(saved + (row * tiles + index) * channels * size + place, carry, mask=inside)
        t = index * BT + step
        decay, dt = decays(delta, rates, row, t, time, channels, channel, 0, time)
        u = of_channel(x, row, t, time, channels, channel, 0)
        written = dt * u * of_token(B, row, t, time, size, number, 0)
        reach, inner = tl.associative_scan((decay, written), 0, compose)
        now = inner + reach * carry[None]
        read = tl.sum(now * of_token(C, row, t, time, size, number, 0), 2, keep_dims=True) + through[None, :, None] * u
        mask = (t < time) & (channel < channels)[None, :, None]
        tl.store(y + (row * time + t) * channels + channel[None, :, None], read, mask=mask)
        carry = tl.sum(tl.where(step == BT - 1, now, 0.0), 0)
    tl.store(h + row * channels * size + place, carry, mask=inside)


@triton.jit
def selective_scan_backward(
    x, delta, A, B, C, D, saved, y_grad, h_grad, x_grad, delta_grad, A_grad, D_grad, BC_grad, state_grad,
    time, channels, size,
    HAS_Y: tl.constexpr, HAS_H: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel, number = tl.program_id(1) * BE + tl.arange(0, BE), tl.arange(0, BN)
    step = tl.arange(0, BT)[:, None, None]
    inside = (channel < channels)[:, None] & (number < size)[None]
    place = channel[:, None] * size + number[None]
    rates = tl.load(A + place, mask=inside, other=0.0)
    through = tl.load(D + channel, mask=channel < channels, other=0.0)[None, :, None]
    carry = tl.zeros([BE, BN], dtype=x.dtype.element_ty)
    if HAS_H:
        carry = tl.load(h_grad + row * channels * size + place, mask=inside, other=0.0)
    rates_grad = tl.zeros([BE, BN], dtype=x.dtype.element_ty)
    through_grad = tl.zeros([BE], dtype=x.dtype.element_ty)
    tiles = tl.cdiv(time, BT)
    for back in range(0, tiles):
        index = tiles - 1 - back
        start = index * BT
        t = start + step
        first = tl.load(saved + (row * tiles + index) * channels * size + place, mask=inside, other=0.0)
        decay, dt = decays(delta, rates, row, t - 1, time, channels, channel, start, time)
        written = dt * of_channel(x, row, t - 1, time, channels, channel, start)
        written = written * of_token(B, row, t - 1, time, size, number, start) + tl.where(step == 0, first[None], 0.0)
        before = tl.associative_scan((decay, written), 0, compose)[1]

        slope = tl.zeros([BT, BE, 1], dtype=x.dtype.element_ty)
        if HAS_Y:
            slope = of_channel(y_grad, row, t, time, channels, channel, 0)
        behind = decays(delta, rates, row, t + 1, time, channels, channel, start, start + BT)[0]
        seed = slope * of_token(C, row, t, time, size, number, 0)
        reach, inner = tl.associative_scan((behind, seed), 0, compose, reverse=True)
        adjoint = inner + reach * carry[None]

        decay, dt = decays(delta, rates, row, t, time, channels, channel, 0, time)
        u, b = of_channel(x, row, t, time, channels, channel, 0), of_token(B, row, t, time, size, number, 0)
        carry = tl.sum(tl.where(step == 0, adjoint * decay, 0.0), 0)
        now = decay * before + dt * u * b
        exponent = decay * before * adjoint  # the gradient of Δ A
        taken = tl.sum(adjoint * b, 2, keep_dims=True)
        rates_grad += tl.sum(exponent * dt, 0)
        through_grad += tl.sum(tl.sum(slope * u, 2), 0)
        at = (row * time + t) * channels + channel[None, :, None]
        mask = (t < time) & (channel < channels)[None, :, None]
        tl.store(x_grad + at, through * slope + dt * taken, mask=mask)
        tl.store(delta_grad + at, tl.sum(exponent * rates[None], 2, keep_dims=True) + u * taken, mask=mask)
        shared = ((block * tl.num_programs(0) + row) * time + t) * 2 * size + number[None, None]
        within = (t < time) & (number < size)[None, None]
        tl.store(BC_grad + shared, tl.sum(adjoint * dt * u, 1, keep_dims=True), mask=within)
        tl.store(BC_grad + shared + size, tl.sum(now * slope, 1, keep_dims=True), mask=within)
    tl.store(A_grad + row * channels * size + place, rates_grad, mask=inside)
    tl.store(D_grad + row * channels + channel, through_grad, mask=channel < channels)
    tl.store(state_grad + row * channels * size + place, carry, mask=inside)

"""Triton: the short convolution of tiles of time by channels. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def input_at(x, state, row, t, time, width, x_row, x_token, channel, inside, J: tl.constexpr, HAS_STATE: tl.constexpr):
    """The inputs at times t, of which those before 0 are the state's; 0 after the end."""
    now = tl.load(x + row * x_row + t * x_token + channel, mask=inside & (t >= 0) & (t < time), other=0.0)
    if HAS_STATE:
        at = (row * (J - 1) + t + J - 1) * width + channel
        return now + tl.load(state + at, mask=inside & (t < 0) & (t > -J), other=0.0)
    return now


@triton.jit
def short_conv_forward(
    x, weight, bias, state, y, last, time, width, x_row, x_token,
    J: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BT + tl.arange(0, BT)[:, None]
    channel = tl.program_id(2) * BD + tl.arange(0, BD)[None]
    inside = channel < width
    total = tl.zeros([BT, BD], dtype=y.dtype.element_ty)
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=inside, other=0.0)
    for j in tl.static_range(J):
        tap = tl.load(weight + channel * J + j, mask=inside, other=0.0)
        total += tap * input_at(
            x, state, row, t - (J - 1) + j, time, width, x_row, x_token, channel, inside, J, HAS_STATE
        )
    if SILU:
        total = total / (1 + tl.exp(-total))
    tl.store(y + (row * time + t) * width + channel, total, mask=inside & (t < time))
    if tl.program_id(1) == 0:
        for j in tl.static_range(J - 1):
            at = time - (J - 1) + j + tl.zeros([1, BD], dtype=tl.int32)
            value = input_at(x, state, row, at, time, width, x_row, x_token, channel, inside, J, HAS_STATE)
            tl.store(last + (row * (J - 1) + j) * width + channel, value, mask=inside)


@triton.jit
def short_conv_sum_gradient(
    x, weight, bias, state, y_grad, sum_grad, partial, time, width, x_row, x_token,
    J: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradient of the sum before the SiLU, and of a tile's taps and bias."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BT + tl.arange(0, BT)[:, None]
    channel = tl.program_id(2) * BD + tl.arange(0, BD)[None]
    inside = channel < width
    at = (row * time + t) * width + channel
    slope = tl.load(y_grad + at, mask=inside & (t < time), other=0.0)
    if SILU:
        total = tl.zeros([BT, BD], dtype=y_grad.dtype.element_ty)
        if HAS_BIAS:
            total += tl.load(bias + channel, mask=inside, other=0.0)
        for j in tl.static_range(J):
            tap = tl.load(weight + channel * J + j, mask=inside, other=0.0)
            total += tap * input_at(
                x, state, row, t - (J - 1) + j, time, width, x_row, x_token, channel, inside, J, HAS_STATE
            )
        open = 1 / (1 + tl.exp(-total))
        slope = slope * open * (1 + total * (1 - open))
    tl.store(sum_grad + at, slope, mask=inside & (t < time))
    place = (row * tl.num_programs(1) + tl.program_id(1)) * (J + 1) * width + channel
    for j in tl.static_range(J):
        value = input_at(x, state, row, t - (J - 1) + j, time, width, x_row, x_token, channel, inside, J, HAS_STATE)
        tl.store(partial + place + j * width, tl.sum(slope * value, 0, keep_dims=True), mask=inside)
    tl.store(partial + place + J * width, tl.sum(slope, 0, keep_dims=True), mask=inside)


@triton.jit
def short_conv_input_gradient(
    weight, sum_grad, last_grad, x_grad, state_grad, time, width,
    J: tl.constexpr, HAS_LAST: tl.constexpr, HAS_STATE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradient of the inputs, those of the state being the first J - 1."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BT + tl.arange(0, BT)[:, None] - (J - 1)
    channel = tl.program_id(2) * BD + tl.arange(0, BD)[None]
    inside = (channel < width) & (t < time)
    total = tl.zeros([BT, BD], dtype=sum_grad.dtype.element_ty)
    for j in tl.static_range(J):
        later = t + (J - 1) - j
        tap = tl.load(weight + channel * J + j, mask=channel < width, other=0.0)
        mask = inside & (later >= 0) & (later < time)
        total += tap * tl.load(sum_grad + (row * time + later) * width + channel, mask=mask, other=0.0)
    if HAS_LAST:
        index = t - time + (J - 1)
        mask = inside & (index >= 0)
        total += tl.load(last_grad + (row * (J - 1) + index) * width + channel, mask=mask, other=0.0)
    tl.store(x_grad + (row * time + t) * width + channel, total, mask=inside & (t >= 0))
    if HAS_STATE:
        tl.store(state_grad + (row * (J - 1) + t + J - 1) * width + channel, total, mask=inside & (t < 0))

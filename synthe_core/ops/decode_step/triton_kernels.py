"""Triton: a decoded token's maps with what stands before and behind them, and the steps of learners in place. Imports
Triton.

A map reads float weights as they are stored, or int8 and int4 codes, and multiplies in float32. Rows of x are tokens of
different sequences, each by itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from synthe_core.ops.triton_quantized_kernels import weights


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def softplus(x):
    return tl.where(x > 20, x, tl.log(1 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def weight_tile(w, scale, n, k, N, K, w_row, scale_row, GROUP: tl.constexpr, BITS: tl.constexpr):
    """W[n, k] in float32 [BK, BN], zeros outside; BITS: of codes, 0 for floats."""
    if BITS > 0:
        return weights(w, scale, n, k, N, K, w_row, scale_row, GROUP, BITS)
    return tl.load(w + n * w_row + k, mask=(n < N) & (k < K), other=0.0).to(tl.float32)


@triton.jit
def mapped(
    x, norm, eps, w, scale, bias, m, n, count, N, K, w_row, scale_row, total,
    HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """W x + b of a tile of rows m and outputs n, added to `total` [BM, BN]; HAS_NORM: of the RMS norm of x."""
    squares = tl.zeros([BM], dtype=tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        part = tl.load(x + m[:, None] * K + k[None], mask=(m < count)[:, None] & (k < K)[None], other=0.0)
        if HAS_NORM:
            squares += tl.sum(part * part, 1)
            part *= tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)[None]
        tile = weight_tile(w, scale, n.to(tl.int64)[None], k[:, None], N, K, w_row, scale_row, GROUP, BITS)
        total = tl.dot(part, tile, total, input_precision="tf32x3")
    if HAS_NORM:
        total = total / tl.sqrt(squares / K + eps)[:, None]
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None]
    return total


@triton.jit
def norm_maps(
    x, norm, y, w, scale, bias, more, more_scale, more_bias, count, N, M, K, w_row, scale_row, more_row, more_scale_row,
    eps: tl.constexpr, HAS_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, MORE_BIAS: tl.constexpr, GROUP: tl.constexpr,
    BITS: tl.constexpr, MORE_GROUP: tl.constexpr, MORE_BITS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [B, N + M], two maps of norm(x) side by side; M may be 0."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    number, first = tl.program_id(1), tl.cdiv(N, BN)
    zeros = tl.zeros([BM, BN], dtype=tl.float32)
    if number < first:
        n = number * BN + tl.arange(0, BN)
        out = mapped(
            x, norm, eps, w, scale, bias, m, n, count, N, K, w_row, scale_row, zeros,
            HAS_NORM, HAS_BIAS, GROUP, BITS, BM, BK,
        )  # fmt: skip
        tl.store(y + m[:, None] * (N + M) + n[None], out, mask=(m < count)[:, None] & (n < N)[None])
    else:
        n = (number - first) * BN + tl.arange(0, BN)
        out = mapped(
            x, norm, eps, more, more_scale, more_bias, m, n, count, M, K, more_row, more_scale_row, zeros,
            HAS_NORM, MORE_BIAS, MORE_GROUP, MORE_BITS, BM, BK,
        )  # fmt: skip
        tl.store(y + m[:, None] * (N + M) + N + n[None], out, mask=(m < count)[:, None] & (n < M)[None])


@triton.jit
def norm_swiglu(
    x, norm, y, w, scale, bias, count, N, K, w_row, scale_row, eps: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = silu(W_g h) ⊙ W_u h [B, N] of h = norm(x); W has the rows of W_g and then those of W_u."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    zeros = tl.zeros([BM, BN], dtype=tl.float32)
    low = tl.where(n < N, n, 2 * N)  # no row of either
    gate = mapped(
        x, norm, eps, w, scale, bias, m, low, count, N, K, w_row, scale_row, zeros,
        HAS_NORM, HAS_BIAS, GROUP, BITS, BM, BK,
    )  # fmt: skip
    up = mapped(
        x, norm, eps, w, scale, bias, m, low + N, count, 2 * N, K, w_row, scale_row, zeros,
        HAS_NORM, HAS_BIAS, GROUP, BITS, BM, BK,
    )  # fmt: skip
    tl.store(y + m[:, None] * N + n[None], gate * sigmoid(gate) * up, mask=(m < count)[:, None] & (n < N)[None])


@triton.jit
def add_map(
    x, y, w, scale, bias, count, N, K, w_row, scale_row, HAS_BIAS: tl.constexpr, GROUP: tl.constexpr,
    BITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x += W y + b, in place."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    at, mask = x + m[:, None] * N + n[None], (m < count)[:, None] & (n < N)[None]
    stream = tl.load(at, mask=mask, other=0.0)
    out = mapped(
        y, bias, 0.0, w, scale, bias, m, n, count, N, K, w_row, scale_row, stream,
        False, HAS_BIAS, GROUP, BITS, BM, BK,
    )  # fmt: skip
    tl.store(at, out, mask=mask)


@triton.jit
def momentum_step(projected, bias, average, y, numbers, width, HAS_GATE: tl.constexpr, BLOCK: tl.constexpr):
    """h = σ(a) h + σ(-a) v in place, y = h silu(g) or h; projected [B, 3 width] or [B, 2 width]: a, v and g."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask, channel = at < numbers, at % width
    parts = 2
    if HAS_GATE:
        parts = 3
    source = projected + at // width * parts * width + channel
    logit = tl.load(source, mask=mask, other=0.0) + tl.load(bias + channel, mask=mask, other=0.0)
    value = tl.load(source + width, mask=mask, other=0.0)
    h = sigmoid(logit) * tl.load(average + at, mask=mask, other=0.0) + sigmoid(-logit) * value
    tl.store(average + at, h, mask=mask)
    if HAS_GATE:
        gate = tl.load(source + 2 * width, mask=mask, other=0.0)
        h = h * gate * sigmoid(gate)
    tl.store(y + at, h, mask=mask)


@triton.jit
def kalman_step(
    projected, transition_logit, process_logit, noise_bias, mean, variance, y, signals, width,
    floor: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row's filter in place, y = mean ⊙ silu(g), signals [B, 2]; projected [B, 3 width]: z, the noise's logit, g."""
    row = tl.program_id(0).to(tl.int64)
    surprise, confidence = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        mask = channel < width
        source = projected + row * 3 * width + channel
        z, gate = tl.load(source, mask=mask, other=0.0), tl.load(source + 2 * width, mask=mask, other=0.0)
        bias = tl.load(noise_bias + channel, mask=mask, other=0.0)
        r = softplus(tl.load(source + width, mask=mask, other=0.0) + bias)
        a = sigmoid(tl.load(transition_logit + channel, mask=mask, other=0.0))
        q = softplus(tl.load(process_logit + channel, mask=mask, other=0.0)) + floor
        at = row * width + channel
        before = a * tl.load(mean + at, mask=mask, other=0.0)
        prior = a * a * tl.load(variance + at, mask=mask, other=0.0) + q
        total = prior + r
        error, gain = z - before, prior / total
        after = before + gain * error
        tl.store(mean + at, after, mask=mask)
        tl.store(variance + at, r * gain, mask=mask)
        tl.store(y + at, after * gate * sigmoid(gate), mask=mask)
        surprise += tl.where(mask, error * error / total, 0.0)
        confidence += tl.where(mask, r / total, 0.0)
    tl.store(signals + row * 2, tl.sum(surprise, 0) / width)
    tl.store(signals + row * 2 + 1, tl.sum(confidence, 0) / width)


@triton.jit
def convolved(projected, past, weight, bias, channel, mask, channels, taps: tl.constexpr, HAS_BIAS: tl.constexpr):
    """SiLU of the convolution of some channels with their last inputs, which move up by one, in place."""
    now = tl.load(projected + channel, mask=mask, other=0.0)
    total = now * 0
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=mask, other=0.0)
    if taps > 1:
        for j in range(taps - 1):
            before = tl.load(past + j * channels + channel, mask=mask, other=0.0)
            total += before * tl.load(weight + channel * taps + j, mask=mask, other=0.0)
            if j > 0:
                tl.store(past + (j - 1) * channels + channel, before, mask=mask)
        total += now * tl.load(weight + channel * taps + taps - 1, mask=mask, other=0.0)
        tl.store(past + (taps - 2) * channels + channel, now, mask=mask)
    else:
        total += now
    return total * sigmoid(total)


@triton.jit
def delta_step(
    projected, past, weight, bias, A_log, dt_bias, norm, memory, y, features, heads, K, V,
    low: tl.constexpr, high: tl.constexpr, key_eps: tl.constexpr, norm_eps: tl.constexpr, scale: tl.constexpr,
    OVERWRITE: tl.constexpr, DECAY: tl.constexpr, SILU: tl.constexpr, SIGMOID: tl.constexpr, HAS_BIAS: tl.constexpr,
    TAPS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """A head of a row: convolution, keys of length 1, gates, the write and the read, its norm and its gate. Memory and
    the convolution's last inputs change in place; projected [B, features]: q, k, v, the output gate, β and the decay's
    logits."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ck, cv = tl.arange(0, BK), tl.arange(0, BV)
    in_key, in_value = ck < K, cv < V
    keys, channels = heads * K, heads * (2 * K + V)
    source, inputs = projected + row * features, past + row * (TAPS - 1) * channels
    q = convolved(source, inputs, weight, bias, head * K + ck, in_key, channels, TAPS, HAS_BIAS)
    k = convolved(source, inputs, weight, bias, keys + head * K + ck, in_key, channels, TAPS, HAS_BIAS)
    v = convolved(source, inputs, weight, bias, 2 * keys + head * V + cv, in_value, channels, TAPS, HAS_BIAS)
    q, k = tl.where(in_key, q, 0.0), tl.where(in_key, k, 0.0)
    q, k = q / tl.sqrt(tl.sum(q * q, 0) + key_eps), k / tl.sqrt(tl.sum(k * k, 0) + key_eps)
    behind = channels
    if SILU or SIGMOID:
        behind += heads * V
    beta = low + (high - low) * sigmoid(tl.load(source + behind + head))
    cell = (row * heads + head) * K * V + ck[:, None] * V + cv[None]
    mask = in_key[:, None] & in_value[None]
    S = tl.load(memory + cell, mask=mask, other=0.0)
    if DECAY:
        step = softplus(tl.load(source + behind + heads + head) + tl.load(dt_bias + head))
        S = S * tl.exp(-tl.exp(tl.load(A_log + head)) * step)
    written = v
    if OVERWRITE:
        written = v - tl.sum(k[:, None] * S, 0)
    S += (beta * k)[:, None] * written[None]
    tl.store(memory + cell, S, mask=mask)
    o = tl.where(in_value, tl.sum(q[:, None] * S, 0), 0.0)
    o = o / tl.sqrt(tl.sum(o * o, 0) / V + norm_eps) * tl.load(norm + cv, mask=in_value, other=0.0) * scale
    if SILU or SIGMOID:
        gate = tl.load(source + channels + head * V + cv, mask=in_value, other=0.0)
        o = o * sigmoid(gate)
        if SILU:
            o = o * gate
    tl.store(y + (row * heads + head) * V + cv, o, mask=in_value)

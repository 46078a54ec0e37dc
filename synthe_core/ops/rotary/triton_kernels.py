"""Triton: rotary positions of rows, a head of a token each, behind their norm. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def inverse_norm(first, second, rest, size, eps, NORM: tl.constexpr):
    """1 / sqrt(mean(x²) + eps) of each row, or 1."""
    if NORM:
        square = tl.sum(first * first + second * second, 1, keep_dims=True) + tl.sum(rest * rest, 1, keep_dims=True)
        return 1 / tl.sqrt(square / size + eps)
    return tl.full([first.shape[0], 1], 1.0, dtype=first.dtype)


@triton.jit
def rotary_kernel(
    x, cos, sin, y_grad, out, rows, time, heads, size, half, x_row, x_token, x_head, eps,
    BACK: tl.constexpr, NORM: tl.constexpr, WIDE: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y, or with BACK the gradient of x."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    token = row // heads
    source = token // time * x_row + token % time * x_token + row % heads * x_head
    pair, other = tl.arange(0, BH)[None], tl.arange(0, BK)[None]
    turned = (row < rows) & (pair < half)
    left = (row < rows) & (other < size - 2 * half)
    c = tl.load(cos + token * half + pair, mask=turned, other=1.0)
    s = tl.load(sin + token * half + pair, mask=turned, other=0.0)
    first = tl.load(x + source + pair, mask=turned, other=0.0).to(WIDE)
    second = tl.load(x + source + half + pair, mask=turned, other=0.0).to(WIDE)
    rest = tl.load(x + source + 2 * half + other, mask=left, other=0.0).to(WIDE)
    inverse = inverse_norm(first, second, rest, size, eps, NORM)
    first, second, rest = first * inverse, second * inverse, rest * inverse
    target = row * size
    if BACK:
        g1 = tl.load(y_grad + target + pair, mask=turned, other=0.0).to(WIDE)
        g2 = tl.load(y_grad + target + half + pair, mask=turned, other=0.0).to(WIDE)
        g3 = tl.load(y_grad + target + 2 * half + other, mask=left, other=0.0).to(WIDE)
        g1, g2 = g1 * c + g2 * s, g2 * c - g1 * s
        if NORM:
            along = tl.sum(g1 * first + g2 * second, 1, keep_dims=True) + tl.sum(g3 * rest, 1, keep_dims=True)
            along = along / size
            g1, g2, g3 = (
                (g1 - first * along) * inverse,
                (g2 - second * along) * inverse,
                (g3 - rest * along) * inverse,
            )
        first, second, rest = g1, g2, g3
    else:
        first, second = first * c - second * s, first * s + second * c
    kind = out.dtype.element_ty
    tl.store(out + target + pair, first.to(kind), mask=turned)
    tl.store(out + target + half + pair, second.to(kind), mask=turned)
    tl.store(out + target + 2 * half + other, rest.to(kind), mask=left)

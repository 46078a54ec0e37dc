"""Triton: root-mean-square norms of rows. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_forward(
    x, weight, y, scale, rows, width, eps, WIDE: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)[:, None]
    channel = tl.arange(0, BD)[None]
    mask = (row < rows) & (channel < width)
    value = tl.load(x + row * width + channel, mask=mask, other=0.0).to(WIDE)
    inverse = 1 / tl.sqrt(tl.sum(value * value, 1, keep_dims=True) / width + eps)
    w = tl.load(weight + channel, mask=channel < width, other=0.0).to(WIDE)
    tl.store(y + row * width + channel, (value * inverse * w).to(y.dtype.element_ty), mask=mask)
    tl.store(scale + row, inverse, mask=row < rows)


@triton.jit
def rms_norm_backward(
    x, weight, scale, y_grad, x_grad, partial, rows, width, ROWS: tl.constexpr, WIDE: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradients of ROWS rows, and what they add to that of the weights."""
    channel = tl.arange(0, BD)[None]
    w = tl.load(weight + channel, mask=channel < width, other=0.0).to(WIDE)
    total = tl.zeros([1, BD], dtype=WIDE)
    for start in range(0, ROWS, BR):
        row = tl.program_id(0).to(tl.int64) * ROWS + start + tl.arange(0, BR)[:, None]
        mask = (row < rows) & (channel < width)
        value = tl.load(x + row * width + channel, mask=mask, other=0.0).to(WIDE)
        slope = tl.load(y_grad + row * width + channel, mask=mask, other=0.0).to(WIDE)
        inverse = tl.load(scale + row, mask=row < rows, other=0.0)
        unit = value * inverse
        total += tl.sum(slope * unit, 0, keep_dims=True)
        slope = slope * w
        along = tl.sum(slope * unit, 1, keep_dims=True) / width
        tl.store(x_grad + row * width + channel, ((slope - unit * along) * inverse).to(x_grad.dtype.element_ty), mask)
    tl.store(partial + tl.program_id(0).to(tl.int64) * width + channel, total, mask=channel < width)

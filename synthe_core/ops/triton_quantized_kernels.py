"""Triton: products with 8- and 4-bit codes, which become numbers in registers. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weights(codes, scale, row, column, rows, columns, code_row, scale_row, GROUP: tl.constexpr, BITS: tl.constexpr):
    """W[row, column] in float32, zeros outside."""
    mask = (row < rows) & (column < columns)
    if BITS == 4:
        pair = tl.load(codes + row * code_row + column // 2, mask=mask, other=0).to(tl.int32)
        code = (pair >> (column % 2 * 4)) & 15
        code = code - tl.where(code > 7, 16, 0)
    else:
        code = tl.load(codes + row * code_row + column, mask=mask, other=0).to(tl.int32)
    factor = tl.load(scale + row * scale_row + column // GROUP, mask=mask, other=0.0).to(tl.float32)
    return code.to(tl.float32) * factor


@triton.jit
def quantized_product(
    x, codes, scale, y, count, rows, columns, code_row, scale_row,
    TRANSPOSED: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = x W^T of x [count, columns], or with TRANSPOSED y = x W of x [count, rows]."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
    n = tl.program_id(1) * BN + tl.arange(0, BN)[None]
    inner, outer = columns, rows
    if TRANSPOSED:
        inner, outer = rows, columns
    total = tl.zeros([BM, BN], dtype=tl.float32)
    for start in range(0, inner, BK):
        k = start + tl.arange(0, BK)
        mask = (m < count) & (k[None] < inner)
        part = tl.load(x + m * inner + k[None], mask=mask, other=0.0)
        if TRANSPOSED:
            w = weights(codes, scale, k[:, None].to(tl.int64), n, rows, columns, code_row, scale_row, GROUP, BITS)
        else:
            w = weights(codes, scale, n.to(tl.int64), k[:, None], rows, columns, code_row, scale_row, GROUP, BITS)
        total = tl.dot(part, w.to(part.dtype), total, input_precision="tf32x3")
    tl.store(y + m * outer + n, total.to(y.dtype.element_ty), mask=(m < count) & (n < outer))

"""Products with a packed matrix by integers: the rows of x are rounded to eight bits a block of 32, as in llama.cpp.

    q_b = round(x_b / d_b)        d_b = max |x_b| / 127
    y = factor sum_b d_b (s_b c_b . q_b + o_b sum q_b)

The sum of a block is exact. A row of y does not depend on other rows. No gradient. The C kernel reads each code once
for every four rows; `reference` is the definition. Source of 8-bit blocks against 4-bit ones: ggml (Gerganov et al.).
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware.probe import probe
from synthe_core.ops.float_linear import float_linear
from synthe_core.ops.native import library, pointer, refusal
from synthe_core.quantization.matrix import FloatMatrix, QuantizedMatrix, StackedMatrix
from synthe_core.quantization.packed import BLOCK, LANES, PackedMatrix

SOURCE = "packed_linear/packed_linear.c"


def packed_linear(x: Tensor, matrix: QuantizedMatrix, outputs: slice | None = None) -> Tensor:
    """W x, or the `outputs` of it, of a matrix that is packed or in 16 bits, or a stack of them; x [..., I], W [O, I],
    y float32 [..., O]."""
    if isinstance(matrix, StackedMatrix):
        y = torch.cat([packed_linear(x, each) for each in matrix.each], -1)
        return y if outputs is None else y[..., outputs]
    if isinstance(matrix, FloatMatrix):
        return float_linear(x, matrix.values if outputs is None else matrix.values[outputs])
    assert isinstance(matrix, PackedMatrix)
    codes, scales, offsets = matrix.tensors
    first, last = 0, matrix.shape[0]
    if outputs is not None:  # whole groups
        first, last, _ = outputs.indices(last)
        groups = slice(first // LANES, -(-last // LANES))
        codes, scales = codes[groups], scales[groups]
        offsets = None if offsets is None else offsets[groups]
    y = _product(x.float().contiguous(), codes, scales, offsets, matrix, last - first // LANES * LANES)
    return y[..., first % LANES :] if first % LANES else y


def _product(
    x: Tensor, codes: Tensor, scales: Tensor, offsets: Tensor | None, matrix: PackedMatrix, outputs: int
) -> Tensor:
    columns, blocks = x.shape[-1], codes.shape[1]
    count = x.numel() // columns
    q = torch.empty(count, blocks * BLOCK, dtype=torch.int8)
    d, sums = torch.empty(2, count, blocks)
    counts = torch.empty(count, blocks, 2, dtype=torch.int32)
    y = torch.empty(*x.shape[:-1], outputs)
    native, size = library(SOURCE), ctypes.c_int64
    native.quantize_rows(*map(pointer, (x, q, d, sums, counts)), size(count), size(columns), size(blocks))
    native.packed_linear(
        *map(pointer, (codes, scales, offsets, q, d, sums, counts, y)),
        ctypes.c_double(matrix.factor),
        *map(size, (count, outputs, blocks, matrix.bits, scales.shape[2])),
    )
    return y


def unavailable(device: str) -> str | None:
    """Why there are no such products on a type of device, or None."""
    return refusal(probe(), device, SOURCE)


def reference(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """`packed_linear`, float64 [..., O]."""
    padded = F.pad(x.float(), (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    scales = padded.abs().amax(-1, keepdim=True) / 127
    ratio = padded * torch.where(scales > 0, 1 / scales, 0)
    rounded = (ratio + torch.where(ratio < 0, -0.5, 0.5)).trunc()
    values = (rounded.double() * scales.double()).flatten(-2)[..., : x.shape[-1]]
    return values @ matrix.dequantize().double().T

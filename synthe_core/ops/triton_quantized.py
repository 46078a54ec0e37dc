"""Products with int8 and int4 weights in Triton: codes are read as they are and become numbers in registers.

Torch's own products of this kind do not fit our codes: `_weight_int8pack_mm` has one scale a row, where ours has one
for every 128 columns, and `_weight_int4pack_mm` has a packing of its own, and zero points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.hardware.probe import probe
from synthe_core.ops.triton_launch import block, cdiv, interpreted, launch
from synthe_core.quantization.matrix import CodedMatrix, QuantizedMatrix

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COLUMNS, INNER, MAX_ROWS = 64, 32, 64  # of a program's part of y, of a step of the sum, and rows of y


def serves(x: Tensor, matrix: QuantizedMatrix) -> bool:
    """Whether these products exist for x and a matrix."""
    if not isinstance(matrix, CodedMatrix) or x.dtype not in DTYPES:
        return False
    return (x.is_cuda and "triton" in probe().libraries) or (x.device.type == "cpu" and interpreted())


def triton_product(x: Tensor, matrix: CodedMatrix, outputs: slice | None, transposed: bool) -> Tensor:
    """x W^T, or with `transposed` x W, in the type of x with sums in float32; `outputs`: of these rows of W. One
    launch, and no memory beside y."""
    from synthe_core.ops.triton_quantized_kernels import quantized_product

    chosen = slice(None) if outputs is None else outputs
    codes, scale = matrix.get_buffer("codes")[chosen], matrix.get_buffer("scale")[chosen]
    rows, columns = codes.shape[0], matrix.shape[1]
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    y = x.new_empty(*x.shape[:-1], columns if transposed else rows)
    if not y.numel():
        return y
    tile = block(len(flat), MAX_ROWS, 16)
    grid = (cdiv(len(flat), tile), cdiv(y.shape[-1], COLUMNS))
    launch(
        quantized_product, grid, x, flat, codes, scale, y, len(flat), rows, columns, codes.stride(0), scale.stride(0),
        TRANSPOSED=transposed, GROUP=matrix.form.group, BITS=matrix.form.bits, BM=tile, BN=COLUMNS, BK=INNER,
    )  # fmt: skip
    return y

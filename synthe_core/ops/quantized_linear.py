"""Products with a frozen matrix that stays quantised: a part of its rows is dequantised at a time, and none is saved.

    y = x W^T        dL/dx = dL/dy W, for which W is dequantised once more

Memory beside x and y: `matrix.CHUNK` numbers. Cost: dequantising W in each direction. Dettmers et al. 2023.
On CUDA, int8 and int4 weights become numbers in the registers of one kernel (`triton_quantized`). There a matrix of
16-bit floats is multiplied in 16 bits: x is rounded to them, and sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthe_core.ops.dispatch import compute_dtype
from synthe_core.ops.linear import linear
from synthe_core.ops.packed_linear import packed_linear
from synthe_core.ops.triton_quantized import serves, triton_product
from synthe_core.quantization.matrix import CodedMatrix, FloatMatrix, QuantizedMatrix
from synthe_core.quantization.packed import HALVES, has_products
from synthe_core.quantization.sliced import SlicedMatrix


def quantized_linear(
    x: Tensor,
    matrix: QuantizedMatrix,
    bias: Tensor | None = None,
    outputs: slice | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """W x + b, or the `outputs` of it; x [..., I], W [O, I], b [O], y [..., O]. Computed in `dtype` where one is given,
    else in autocast's type or that of x; of W as it is in memory where it `has_products` and x has no gradient. W and b
    have no gradient of their own; that of x has gradients."""
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    if isinstance(matrix, SlicedMatrix) and not needs_gradient:
        y = torch.cat(matrix.of_slices(lambda each, rows: quantized_linear(x, each, None, rows, dtype), outputs), -1)
    elif x.device.type == "cpu" and has_products(matrix) and not needs_gradient:
        y = packed_linear(x, matrix, outputs).to(dtype or compute_dtype(x))
    else:
        y = _Product.apply(x, matrix, outputs, dtype or compute_dtype(x), False)
    if bias is None:
        return y
    return y + (bias if outputs is None else bias[outputs]).to(y.dtype)


class _Product(torch.autograd.Function):
    """x W^T, or with `transposed` x W; each is the other's gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: QuantizedMatrix, outputs: slice | None, dtype: torch.dtype, transposed: bool
    ) -> Tensor:
        ctx.arguments, ctx.dtype = (matrix, outputs, dtype, not transposed), x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return multiply(x.to(dtype), matrix, outputs, transposed=transposed)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return _Product.apply(upstream, *ctx.arguments).to(ctx.dtype), None, None, None, None


def multiply(x: Tensor, matrix: QuantizedMatrix, outputs: slice | None = None, *, transposed: bool = False) -> Tensor:
    """x W^T, or with `transposed` x W, of x [..., I] in its own type; `outputs`: of these rows of W. No gradient."""
    if isinstance(matrix, CodedMatrix) and serves(x, matrix):
        return triton_product(x, matrix, outputs, transposed)
    if isinstance(matrix, FloatMatrix) and x.is_cuda and matrix.values.dtype in HALVES:
        weight = matrix.values if outputs is None else matrix.values[outputs]
        rows = x.to(weight.dtype)
        return (rows @ weight if transposed else linear(rows, weight)).to(x.dtype)
    if isinstance(matrix, SlicedMatrix) and not transposed:
        return torch.cat(matrix.of_slices(lambda each, rows: multiply(x, each, rows), outputs), -1)
    parts = list(matrix.parts(outputs))
    if len(parts) == 1:
        weight = matrix.rows(parts[0]).to(x.dtype)
        return x @ weight if transposed else linear(x, weight)
    first = parts[0].start
    if not transposed:
        y = x.new_empty(*x.shape[:-1], parts[-1].stop - first)
        for part in parts:
            y[..., part.start - first : part.stop - first] = linear(x, matrix.rows(part).to(x.dtype))
        return y
    y = x.new_zeros(*x.shape[:-1], matrix.shape[1])
    flat, rows = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    for part in parts:
        flat.addmm_(rows[:, part.start - first : part.stop - first], matrix.rows(part).to(x.dtype))
    return y

"""Products with int8 and int4 weights, whose codes become numbers in registers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.quantized_linear import quantized_linear
from synthe_core.ops.triton_quantized import serves
from synthe_core.quantization.quantize import quantize
from tests.gpu.interpreter.comparison import draws

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize(
    ("sizes", "outputs"), [((1, 70, 71), None), ((70, 130, 65), slice(5, 60)), ((3, 24, 300), None)], ids=str
)
def test_a_product_and_its_gradient_are_those_of_the_dequantised_matrix(dtype, name, sizes, outputs):
    count, rows, columns = sizes
    normal, _ = draws(0, torch.float32)
    matrix = quantize(normal(rows, columns), name)
    x = normal(2, count, columns).to(dtype).requires_grad_()
    assert serves(x, matrix)
    y = quantized_linear(x, matrix, None, outputs)
    weight = matrix.dequantize().to(dtype).double()[outputs or slice(None)]
    wide = x.detach().double().requires_grad_()
    expected = F.linear(wide, weight)
    upstream = normal(*y.shape).to(dtype)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    (right,) = torch.autograd.grad(expected, wide, upstream.double())
    for actual, exact in ((y, expected), (gradient, right)):
        assert actual.dtype == dtype and actual.shape == exact.shape
        assert (actual.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max()


def test_other_formats_are_dequantised_by_parts():
    normal, _ = draws(0, torch.float32)
    matrix, x = quantize(normal(24, 70), "nf4"), normal(3, 70)
    assert not serves(x, matrix)
    torch.testing.assert_close(quantized_linear(x, matrix), F.linear(x, matrix.dequantize()))

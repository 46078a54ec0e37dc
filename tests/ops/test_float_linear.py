"""Products with a matrix in 16 bits: those of the same numbers in float32, whatever stands beside a row."""

from __future__ import annotations

import pytest
import torch

from synthe_core.ops.float_linear import STORED, float_linear, reference, unavailable
from synthe_core.ops.packed_linear import packed_linear
from synthe_core.ops.quantized_linear import quantized_linear
from synthe_core.quantization.matrix import FloatMatrix, StackedMatrix

pytestmark = pytest.mark.skipif(unavailable("cpu") is not None, reason=str(unavailable("cpu")))
SHAPES = [(1, 1), (3, 7), (17, 33), (96, 64), (101, 130), (200, 15)]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = numbers(*shape).to(dtype)
    for rows in (1, 2, 4, 5, 9):
        x = numbers(rows, shape[1])
        expected = reference(x, weight)
        torch.testing.assert_close(float_linear(x, weight).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_that_of_the_same_numbers_in_float32(dtype: torch.dtype) -> None:
    weight = numbers(75, 83)
    weight[0, :4] = torch.tensor([0.0, -0.0, 1e-7, 6e4])
    weight, x = weight.to(dtype), numbers(6, 83)
    assert torch.equal(float_linear(x, weight), float_linear(x, weight.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_row_is_the_same_in_any_company(dtype: torch.dtype) -> None:
    weight, x = numbers(130, 70).to(dtype), numbers(11, 70)
    together = float_linear(x, weight)
    x[3] = torch.nan
    assert torch.equal(float_linear(x, weight)[[0, 5, 10]], together[[0, 5, 10]])
    for row in (0, 5, 10):
        assert torch.equal(float_linear(x[row : row + 1], weight)[0], together[row])


def test_threads_change_nothing() -> None:
    weight, x, threads, results = numbers(500, 70).bfloat16(), numbers(11, 70), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(float_linear(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_of_a_matrix_in_memory() -> None:
    matrix = FloatMatrix(numbers(40, 24).bfloat16())
    x, bias = numbers(2, 3, 24), numbers(40)
    stack = StackedMatrix([matrix, FloatMatrix(numbers(9, 24).half())])
    assert torch.equal(packed_linear(x, matrix), float_linear(x, matrix.values))
    assert torch.equal(packed_linear(x, stack)[..., :40], packed_linear(x, matrix))
    part = quantized_linear(x, matrix, bias, slice(3, 9))
    assert torch.equal(part, float_linear(x, matrix.values[3:9]) + bias[3:9])
    wanted = x.clone().requires_grad_()
    quantized_linear(wanted, matrix).sum().backward()
    torch.testing.assert_close(wanted.grad, matrix.dequantize().sum(0).expand_as(x))

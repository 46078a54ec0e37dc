"""Products with quantised matrices: those of the dequantised matrix, gradients and second gradients too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.cross_entropy import IGNORED, linear_cross_entropy, quantized_cross_entropy
from synthe_core.ops.quantized_linear import quantized_linear
from synthe_core.quantization import matrix as matrices
from synthe_core.quantization.matrix import QuantizedMatrix
from synthe_core.quantization.quantize import MEMORY_FORMATS, quantize


@pytest.fixture(params=[1 << 19, 300], ids=["one part", "several parts"])
def _parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "CHUNK", request.param)


def made(name: str, rows: int = 24, columns: int = 70) -> QuantizedMatrix:
    torch.manual_seed(3)
    return quantize(torch.randn(rows, columns), name)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("name", MEMORY_FORMATS)
@pytest.mark.parametrize("outputs", [None, slice(5, 19), slice(7, None)])
def test_a_product_is_that_of_the_dequantised_matrix(name: str, outputs: slice | None) -> None:
    matrix, bias = made(name), torch.randn(24, dtype=torch.float64)
    weight = matrix.dequantize().double()
    x = torch.randn(2, 9, 70, dtype=torch.float64, requires_grad=True)
    y = quantized_linear(x, matrix, bias, outputs)
    chosen = outputs or slice(None)
    expected = F.linear(x, weight[chosen], bias[chosen])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    (right,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(gradient, right, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_parts")
def test_gradients_of_gradients() -> None:
    matrix = made("nf4", 12, 33)
    x = torch.randn(4, 33, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: quantized_linear(x, matrix).tanh(), x)
    assert torch.autograd.gradgradcheck(lambda x: quantized_linear(x, matrix).tanh(), x)


def test_nothing_is_saved_for_the_backward_pass() -> None:
    matrix, sizes = made("int4"), []
    x = torch.randn(5, 70, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        quantized_linear(x, matrix)
    assert sizes == []


def test_autocast_decides_the_type() -> None:
    matrix = made("int8")
    x = torch.randn(5, 70, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = quantized_linear(x, matrix)
        assert quantized_linear(x, matrix, dtype=torch.float64).dtype == torch.float64
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    expected = matrix.dequantize().bfloat16().float().sum(0).expand(5, 70)
    torch.testing.assert_close(x.grad, expected, rtol=0.02, atol=0.05)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_loss_is_that_of_the_dequantised_matrix(cap: float | None, with_bias: bool) -> None:
    matrix = made("int4_asymmetric", 50, 32)
    bias = torch.randn(50, dtype=torch.float64) if with_bias else None
    hidden = torch.randn(2, 7, 32, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (2, 7))
    targets[0, 3] = IGNORED
    total, each, top = quantized_cross_entropy(hidden, matrix, targets, True, cap, bias)
    weight = matrix.dequantize().double()
    inputs = hidden
    if bias is not None:
        inputs = torch.cat([hidden, hidden.new_ones(2, 7, 1)], -1)
        weight = torch.cat([weight, bias[:, None]], 1)
    right, right_each, right_top = linear_cross_entropy.reference(inputs, weight, targets, True, cap)
    torch.testing.assert_close(total, right, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(each, right_each, rtol=1e-10, atol=1e-10)
    assert top is not None and torch.equal(top.correct, right_top.correct)
    (gradient,) = torch.autograd.grad(total, hidden)
    (right_gradient,) = torch.autograd.grad(right, hidden)
    torch.testing.assert_close(gradient, right_gradient, rtol=1e-9, atol=1e-10)

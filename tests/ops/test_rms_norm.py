import pytest
import torch

from synthe_core.ops.rms_norm import rms_norm
from tests.conftest import needs_compiler


@pytest.mark.parametrize("kernel", ["torch", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("rows,width", [(1, 1), (3, 7), (131, 33), (64, 16)])
def test_kernels_equal_the_reference(kernel, rows, width):
    torch.manual_seed(0)
    x = torch.randn(2, rows, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(width, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    actual, expected = (rms_norm.named(name)(x, weight, 1e-6, torch.float64) for name in (kernel, "reference"))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    pairs = (torch.autograd.grad(y, (x, weight), upstream) for y in (actual, expected))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@needs_compiler
def test_a_narrow_result_is_the_wide_one_rounded():
    torch.manual_seed(0)
    x, weight = torch.randn(5, 37, requires_grad=True), torch.randn(37, requires_grad=True)
    narrow = rms_norm.named("native")(x, weight, 1e-6, torch.bfloat16)
    wide = rms_norm.named("native")(x, weight, 1e-6, torch.float32)
    assert torch.equal(narrow, wide.to(torch.bfloat16))
    upstream = torch.randn(5, 37).to(torch.bfloat16)
    slopes = torch.autograd.grad(narrow, (x, weight), upstream)
    for a, b in zip(slopes, torch.autograd.grad(wide, (x, weight), upstream.float()), strict=True):
        torch.testing.assert_close(a, b)


def test_nan_and_zero_rows():
    x = torch.zeros(2, 8)
    x[1, 3] = torch.nan
    y = rms_norm(x, torch.ones(8), 1e-6, torch.bfloat16)
    assert (y[0] == 0).all() and y[1].isnan().all()

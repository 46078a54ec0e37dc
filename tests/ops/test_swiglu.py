import pytest
import torch

from synthe_core.ops.swiglu import swiglu
from tests.conftest import needs_compiler


@needs_compiler
@pytest.mark.parametrize("rows,hidden", [(1, 1), (5, 3), (67, 41)])
def test_native_equals_the_reference(rows, hidden):
    torch.manual_seed(0)
    x = (4 * torch.randn(2, rows, 2 * hidden, dtype=torch.float64)).requires_grad_()
    upstream = torch.randn(2, rows, hidden, dtype=torch.float64)
    actual, expected = (swiglu.named(name)(x) for name in ("native", "reference"))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    a, b = (torch.autograd.grad(y, x, upstream)[0] for y in (actual, expected))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_narrow_types_are_computed_in_float32(dtype, tolerance):
    gate = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([-1e4, 1e4, 0.0, -0.0])])
    x = torch.stack([gate, torch.ones_like(gate)], dim=-1).to(dtype).requires_grad_()
    y = swiglu.named("native")(x)
    exact = swiglu.reference(x.detach().double())
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=1e-30 if dtype == torch.float32 else 1e-20)
    assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()

import pytest
import torch

from synthe_core.ops.silu_gate import silu_gate
from tests.conftest import needs_compiler


def problem(gate_dtype=torch.float64, time=7):
    torch.manual_seed(0)
    wide = torch.float64 if gate_dtype == torch.float64 else torch.float32
    value = torch.randn(2, time, 13, dtype=wide, requires_grad=True)
    projected = (3 * torch.randn(2, time, 30, dtype=torch.float64)).to(gate_dtype).requires_grad_()
    return value, projected


@needs_compiler
@pytest.mark.parametrize("start", [0, 17])
@pytest.mark.parametrize("time", [1, 7])
def test_native_equals_the_reference_on_a_slice(start, time):
    value, projected = problem(time=time)
    actual, expected = (silu_gate.named(k)(value, projected[..., start : start + 13]) for k in ("native", "reference"))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    upstream = torch.randn(actual.shape, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad(y, (value, projected), upstream) for y in (actual, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@needs_compiler
def test_a_gate_in_bfloat16_is_computed_in_float32():
    value, projected = problem(torch.bfloat16)
    actual, expected = (silu_gate.named(k)(value, projected[..., :13]) for k in ("native", "reference"))
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=8e-3, atol=1e-6)
    slopes = (torch.autograd.grad(y, (value, projected), torch.ones_like(y)) for y in (actual, expected))
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@needs_compiler
def test_a_transposed_gate_is_copied_and_right():
    value, projected = problem()
    gate = projected.detach()[..., :13].transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(silu_gate.named("native")(value, gate), silu_gate.reference(value, gate))

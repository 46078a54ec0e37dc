"""The token shift: the C kernel equals the definition, which is a mix with the token before."""

from __future__ import annotations

import pytest
import torch

from synthe_core.ops.dispatch import Call
from synthe_core.ops.token_shift import token_shift
from tests.conftest import needs_compiler


def problem(time=7, width=70, dtype=torch.float64):
    generator = torch.Generator().manual_seed(time)
    mix_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    x, mix, before = draw(3, time, width).to(dtype), draw(4, width).to(mix_dtype), draw(3, 1, width).to(dtype)
    return [tensor.requires_grad_() for tensor in (x, mix, before)]


def outcome(fn, tensors):
    mixed = fn(*tensors)
    generator = torch.Generator().manual_seed(0)
    draw = lambda y: torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)  # noqa: E731
    return [*mixed, *torch.autograd.grad(mixed, tensors, [draw(y) for y in mixed])]


def test_the_reference_mixes_with_the_token_before():
    x, mix, before = problem()
    mixed = token_shift.reference(x, mix, before)
    assert len(mixed) == 4
    torch.testing.assert_close(mixed[2][1, 0], (1 - mix[2]) * x[1, 0] + mix[2] * before[1, 0])
    torch.testing.assert_close(mixed[3][0, 5], (1 - mix[3]) * x[0, 5] + mix[3] * x[0, 4])


@needs_compiler
@pytest.mark.parametrize(("time", "width"), [(1, 5), (2, 64), (7, 70), (33, 130)])
def test_native_equals_the_reference(time, width, two_threads):
    tensors = problem(time, width)
    actual, expected = (outcome(token_shift.named(name), tensors) for name in ("native", "reference"))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@needs_compiler
def test_native_reads_inputs_that_are_not_contiguous():
    x, mix, before = problem()
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    for a, b in zip(
        token_shift.named("native")(strided, mix, before), token_shift.reference(x, mix, before), strict=True
    ):
        torch.testing.assert_close(a, b)


@needs_compiler
def test_bfloat16_is_computed_in_float32():
    tensors = problem(33, dtype=torch.bfloat16)
    actual = outcome(token_shift.named("native"), tensors)
    wide = [tensor.detach().float().requires_grad_() for tensor in tensors]
    expected = outcome(token_shift.reference, wide)
    assert actual[0].dtype == torch.bfloat16 and actual[-2].dtype == torch.float32
    for a, b in zip(actual, expected, strict=True):
        assert (a.float() - b).norm() < 4e-3 * b.norm()


def test_mixes_in_another_type_are_refused_in_words():
    x, mix, before = (tensor.detach() for tensor in problem())
    call = Call.of({"x": x.float(), "mix": mix, "before": before.float()})
    choices = {choice.kernel: choice.reason for choice in token_shift.explain(call)}
    assert choices["native"] == "no native code for inputs in torch.float32 and mixes in torch.float64"
    assert choices["reference"] is None

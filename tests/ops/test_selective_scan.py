"""The selective scan: every kernel against the recurrence, and that against what is known without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.hardware.probe import probe
from synthe_core.ops.dispatch import Call
from synthe_core.ops.selective_scan import selective_scan

INPUTS = ["x", "delta", "A", "B", "C", "D", "state"]
each_kernel = pytest.mark.parametrize("name", ["segmented", "native"])


@pytest.fixture(autouse=True)
def kernel_that_runs_here(request):
    if "name" in request.fixturenames and request.getfixturevalue("name") == "native" and probe().compiler is None:
        pytest.skip("no C compiler")


def arguments(batch: int, time: int, channels: int, size: int, pace: float = 0.5) -> list[Tensor]:
    """Random ones; `pace` is the middle of the steps, which spread over two decades either side."""
    torch.manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    delta = pace * torch.exp(2 * normal(batch, time, channels))
    rates = -torch.exp(normal(channels, size))
    x, B, C = normal(batch, time, channels), normal(batch, time, size), normal(batch, time, size)
    return [x, delta, rates, B, C, normal(channels), normal(batch, channels, size)]


def outcome(fn, given, stateless=False) -> dict[str, Tensor]:
    """Outputs, and the gradient of every input for a fixed random projection of them, by name."""
    given = [tensor.detach().clone().requires_grad_() for tensor in given]
    y, h = fn(*given[:6], None if stateless else given[6])
    torch.manual_seed(1)
    slopes = [torch.randn(each.shape, dtype=torch.float64).to(each) for each in (y, h)]
    wanted = given[:6] if stateless else given
    gradients = torch.autograd.grad((y * slopes[0]).sum() + (h * slopes[1]).sum(), wanted)
    named = {f"d {name}": slope for name, slope in zip(INPUTS, gradients, strict=False)}
    return {"y": y.detach(), "h": h.detach()} | named


def assert_same(actual, expected, relative):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        error = (actual[name] - value).abs().max() / value.abs().max().clamp_min(1e-30)
        assert error <= relative, f"{name}: relative error {error:.1e}"


@each_kernel
@pytest.mark.parametrize("stateless", [False, True])
@pytest.mark.parametrize(("channels", "size"), [(1, 1), (5, 3), (64, 2), (70, 16), (131, 4)])
@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 63, 65, 131])
def test_equals_the_reference(name, time, channels, size, stateless):
    given = arguments(2, time, channels, size)
    expected = outcome(selective_scan.reference, given, stateless)
    assert_same(outcome(selective_scan.named(name), given, stateless), expected, 1e-11)


@each_kernel
@pytest.mark.parametrize("pace", [1e-5, 30.0, 1e4])
def test_equals_the_reference_however_slow_or_fast_the_clock_is(name, pace):
    given = arguments(1, 200, 20, 5, pace)
    actual = outcome(selective_scan.named(name), given)
    assert all(torch.isfinite(value).all() for value in actual.values())
    assert_same(actual, outcome(selective_scan.reference, given), 1e-11)


@each_kernel
def test_float32_is_within_the_declared_tolerance(name):
    given = [tensor.float() for tensor in arguments(2, 300, 70, 16)]
    kernel = selective_scan.named(name)
    exact = outcome(selective_scan.reference, [tensor.double() for tensor in given])
    assert_same(outcome(kernel, given), exact, kernel.tolerance)


def test_the_gradients_of_the_reference_are_those_of_finite_differences():
    given = [tensor.requires_grad_() for tensor in arguments(2, 4, 3, 2)]
    assert torch.autograd.gradcheck(lambda *each: selective_scan.reference(*each), given)


@each_kernel
def test_a_constant_input_fills_the_state_to_its_known_level(name):
    """With Δ, B and x constant, h tends to Δ x B / (1 - exp(Δ A)); and from there it does not move."""
    step, rate, written = 0.25, -0.5, 3.0
    level = step * written / (1 - torch.exp(torch.tensor(step * rate, dtype=torch.float64)))
    ones = torch.ones(1, 400, 1, dtype=torch.float64)
    rates, skip = torch.full((1, 1), rate, dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    y, h = selective_scan.named(name)(ones, step * ones, rates, written * ones, ones, skip, None)
    torch.testing.assert_close(h[0, 0, 0], level, rtol=1e-12, atol=0)
    torch.testing.assert_close(y[0, -1, 0], level + 2, rtol=1e-12, atol=0)


@each_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inactive_tokens_leave_the_state_unchanged_to_the_bit(name, dtype):
    x, _, rates, B, C, D, state = (tensor.to(dtype) for tensor in arguments(2, 37, 5, 3))
    y, h = selective_scan.named(name)(1e3 * x, torch.zeros_like(x), rates, B, C, D, state)
    assert torch.equal(h, state)
    expected = torch.einsum("ben,btn->bte", state, C) + D * 1e3 * x
    torch.testing.assert_close(y, expected, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-9)


@each_kernel
@pytest.mark.parametrize("at", [1, 16, 50, 64, 99])
def test_time_may_be_split_anywhere(name, at):
    x, delta, rates, B, C, D, state = arguments(2, 100, 7, 3)
    kernel = selective_scan.named(name)
    y, h = kernel(x, delta, rates, B, C, D, state)
    first, middle = kernel(x[:, :at], delta[:, :at], rates, B[:, :at], C[:, :at], D, state)
    rest, last = kernel(x[:, at:], delta[:, at:], rates, B[:, at:], C[:, at:], D, middle)
    torch.testing.assert_close(torch.cat([first, rest], 1), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, h, rtol=1e-12, atol=1e-12)


@each_kernel
def test_inputs_may_be_slices_and_outputs_may_be_used_alone(name):
    given = arguments(2, 20, 6, 3)
    wide = torch.cat([given[3], given[4]], -1).requires_grad_()
    y, _ = selective_scan.named(name)(*given[:3], wide[..., :3], wide[..., 3:], *given[5:])
    (slope,) = torch.autograd.grad(y.square().sum(), wide)
    expected, _ = selective_scan.reference(*given[:3], wide[..., :3], wide[..., 3:], *given[5:])
    (wanted,) = torch.autograd.grad(expected.square().sum(), wide)
    torch.testing.assert_close(slope, wanted, rtol=1e-11, atol=1e-11)


def test_the_compiled_kernel_gives_the_same_bits_on_any_number_of_threads(two_threads):
    if probe().compiler is None:
        pytest.skip("no C compiler")
    given = arguments(3, 40, 200, 4)
    both = outcome(selective_scan.named("native"), given)
    torch.set_num_threads(1)
    alone = outcome(selective_scan.named("native"), given)
    assert all(torch.equal(both[name], alone[name]) for name in alone)


def test_what_does_not_fit_is_refused_in_words():
    given = arguments(2, 5, 4, 3)
    for place, name in ((3, "B"), (5, "D"), (6, "state")):
        wrong = [*given[:place], given[place][..., :-1], *given[place + 1 :]]
        with pytest.raises(InputError, match=rf"^{name} is \["):
            selective_scan(*wrong)
    with pytest.raises(InputError, match="float32 or float64"):
        selective_scan(*[tensor.bfloat16() for tensor in given])
    mixed = dict(zip(INPUTS, [given[0].float(), *given[1:]], strict=True))
    (native,) = (kernel for kernel in selective_scan.kernels if kernel.name == "native")
    assert native.refusal(probe(), Call.of(mixed)) == "its tensors are of different types"

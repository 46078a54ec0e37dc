"""The short convolution: every kernel equals the sum of shifted inputs, and its state carries it over a cut."""

from __future__ import annotations

import pytest
import torch

from synthe_core.hardware.probe import probe
from synthe_core.ops.dispatch import Call
from synthe_core.ops.short_conv import MAX_TAPS, compiled, short_conv


def outcome(kernel, x, weight, state, silu, bias=None):
    leaves = [None if value is None else value.clone().requires_grad_() for value in (x, weight, state, bias)]
    y, after = kernel(*leaves[:3], silu, leaves[3])
    torch.manual_seed(1)
    loss = sum((value * torch.randn(value.shape, dtype=torch.float64).to(value)).sum() for value in (y, after))
    loss.backward()
    return [y.detach(), after.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def arguments(time, channels, taps, dtype=torch.float64):
    torch.manual_seed(0)
    sizes = ((2, time, channels), (channels, taps), (2, taps - 1, channels))
    return [torch.randn(*size, dtype=torch.float64).to(dtype) for size in sizes]


@pytest.fixture(params=["native", "grouped"])
def kernel(request):
    kernel = short_conv.named(request.param)
    if request.param == "native" and (reason := kernel.refusal(probe(), call(arguments(2, 3, 4)))):
        pytest.skip(reason)
    return kernel


def call(inputs):
    return Call.of(dict(zip(("x", "weight", "state"), inputs, strict=True)))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("channels", "taps"), [(5, 2), (130, 3), (257, 4), (6, 7)])
@pytest.mark.parametrize("time", [1, 2, 3, 41])
def test_equals_the_reference(kernel, time, channels, taps, silu, biased):
    inputs = (*arguments(time, channels, taps), silu, torch.randn(channels, dtype=torch.float64) if biased else None)
    for actual, expected in zip(outcome(kernel, *inputs), outcome(short_conv.reference, *inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def test_a_bias_is_added_before_the_silu(kernel):
    x, weight, state = arguments(9, 6, 4)
    bias = torch.randn(6, dtype=torch.float64)
    actual, _ = kernel(x, weight, state, True, bias)
    plain, _ = short_conv.reference(x, weight, state, False)
    torch.testing.assert_close(actual, torch.nn.functional.silu(plain + bias), rtol=1e-10, atol=1e-11)


def test_reads_a_slice_of_wider_rows_and_needs_no_state(kernel):
    x, weight, _ = arguments(9, 6, 4)
    wide = torch.cat([torch.randn_like(x), x, torch.randn_like(x)], -1)
    actual, _ = kernel(wide[..., 6:12], weight, None)
    torch.testing.assert_close(actual, short_conv.reference(x, weight, None)[0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("at", [1, 2, 5, 19])
def test_time_may_be_split_anywhere(kernel, at):
    x, weight, state = arguments(20, 6, 4)
    y, after = kernel(x, weight, state)
    first, middle = kernel(x[:, :at], weight, state)
    rest, last = kernel(x[:, at:], weight, middle)
    torch.testing.assert_close(torch.cat([first, rest], 1), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, after, rtol=0, atol=0)


def test_float32_including_large_inputs(kernel):
    x, weight, state = arguments(200, 40, 4, torch.float32)
    x[0] *= 1000  # SiLU far out on both sides
    actual = outcome(kernel, x, weight, state, True)
    exact = outcome(short_conv.reference, x.double(), weight.double(), state.double(), True)
    for a, b in zip(actual, exact, strict=True):
        assert (a - b).abs().max() <= kernel.tolerance * b.abs().max()


def test_the_compiled_kernel_refuses_with_a_reason():
    x, weight, state = arguments(4, 3, MAX_TAPS + 1)
    assert (
        compiled.refusal(probe(), call([x, weight, state]))
        == f"compiled for at most {MAX_TAPS} taps, not {MAX_TAPS + 1}"
    )
    x, weight, state = arguments(4, 3, 4)
    assert compiled.refusal(probe(), call([x.float(), weight, state])) == "its tensors are of different types"

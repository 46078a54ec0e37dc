"""The long convolution: every kernel equals the sum, and none lets anything flow from the future into the past."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.hardware.probe import probe
from synthe_core.ops.dispatch import Call
from synthe_core.ops.long_conv import long_conv
from synthe_core.ops.long_conv.fft import CHUNK, FEW
from synthe_core.ops.long_conv.native import MAX_TAPS


def arguments(time, channels, length, dtype=torch.float64):
    torch.manual_seed(0)
    sizes = ((2, time, channels), (channels, length), (2, length - 1, channels))
    return [torch.randn(*size, dtype=torch.float64).to(dtype) for size in sizes]


def call(inputs):
    return Call.of(dict(zip(("u", "taps", "state"), inputs, strict=True)))


@pytest.fixture(params=["native", "fft"])
def kernel(request):
    kernel = long_conv.named(request.param)
    if reason := kernel.refusal(probe(), call(arguments(FEW + 1, 3, 4))):
        pytest.skip(reason)
    return kernel


def outcome(kernel, *inputs):
    """Outputs, the inputs that follow, and the gradient of a fixed projection of both in every argument."""
    leaves = [None if value is None else value.clone().requires_grad_() for value in inputs]
    outputs = kernel(*leaves)
    torch.manual_seed(1)
    loss = sum((out * torch.randn(out.shape, dtype=torch.float64).to(out)).sum() for out in outputs)
    used = [leaf for leaf in leaves if leaf is not None and leaf.numel()]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(loss, used)]


def test_the_reference_is_a_convolution():
    u, taps, state = arguments(40, 3, 11)
    y, after = long_conv.reference(u, taps, state)
    for b, d in np.ndindex(2, 3):
        signal = torch.cat([state[b, :, d], u[b, :, d]])
        whole = np.convolve(signal.numpy(), taps[d].numpy())[10:50]
        torch.testing.assert_close(y[b, :, d], torch.from_numpy(whole), rtol=1e-12, atol=1e-12)
    assert torch.equal(after, u[:, 30:])


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK + 1, CHUNK + 2, 200])
@pytest.mark.parametrize("time", [1, 2, 9, CHUNK, CHUNK + 1, 300])
@pytest.mark.parametrize("fresh", [True, False])
def test_equals_the_reference(kernel, time, length, fresh):
    u, taps, state = arguments(time, 19, length)
    inputs = (u, taps, None if fresh else state)
    for actual, expected in zip(outcome(kernel, *inputs), outcome(long_conv.reference, *inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("time", "length"), [(257, 40), (500, 129), (300, 1000)])
def test_nothing_flows_back_from_the_future(kernel, time, length):
    u, taps, state = arguments(time, 3, length)
    u.requires_grad_()
    y, _ = kernel(u, taps, state)
    for cut in (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK, 255):
        with torch.no_grad():
            other = u.clone()
            other[:, cut + 1 :] = 1e6
            assert torch.equal(kernel(other, taps, state)[0][:, : cut + 1], y[:, : cut + 1])
        (gradient,) = torch.autograd.grad(y[:, : cut + 1].sum(), u, retain_graph=True)
        assert gradient[:, cut + 1 :].abs().max() == 0
        assert gradient[:, cut].abs().min() > 0


@pytest.mark.parametrize("length", [50, 700])
def test_float32_is_within_the_kernels_tolerance(kernel, length):
    inputs = arguments(600, 5, length)
    narrow = outcome(kernel, *(value.float() for value in inputs))
    for actual, expected in zip(narrow, outcome(long_conv.reference, *inputs), strict=True):
        assert actual.dtype == torch.float32
        assert (actual - expected).abs().max() <= kernel.tolerance * expected.abs().max()


@pytest.mark.parametrize("at", [1, 63, 64, 149])
def test_time_may_be_split_anywhere(kernel, at):
    u, taps, state = arguments(150, 4, 90)
    whole, last = kernel(u, taps, state)
    first, middle = kernel(u[:, :at], taps, state)
    second, end = kernel(u[:, at:], taps, middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-10, atol=1e-11)
    assert torch.equal(end, last)


def test_reads_slices_of_wider_rows(kernel):
    u, taps, state = arguments(70, 6, 20)
    wide = torch.cat([torch.randn_like(u), u, torch.randn_like(u)], -1)
    columns = torch.cat([taps, torch.randn_like(taps)], 1)
    actual = kernel(wide[..., 6:12], columns[:, :20], state)
    for one, other in zip(actual, long_conv.reference(u, taps, state), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_autocast_narrows_nothing(kernel):
    inputs = arguments(100, 4, 30, torch.float32)
    plain = outcome(kernel, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = outcome(kernel, *inputs)
    assert all(torch.equal(one, other) for one, other in zip(plain, under, strict=True))


def test_the_sum_serves_few_tokens_and_ffts_very_long_filters():
    def serves(kernel, time, length):
        return long_conv.named(kernel).refusal(probe(), call(arguments(time, 1, length))) is None

    assert not serves("fft", FEW, 30) and serves("fft", FEW + 1, 30)
    assert not serves("native", MAX_TAPS + 1, MAX_TAPS + 1)
    if serves("native", 2, 3):
        assert serves("native", 1, MAX_TAPS + 1) and serves("native", MAX_TAPS + 1, MAX_TAPS)
    elsewhere = Call("cuda", torch.float32, 100, False, call(arguments(100, 1, 5)).arguments)
    assert "cuda" in long_conv.named("native").refusal(probe(), elsewhere)
    assert long_conv.named("fft").refusal(probe(), elsewhere) is None


@pytest.mark.parametrize("name", ["native", "fft", "reference"])
def test_narrow_types_are_refused(name):
    with pytest.raises(InputError, match="u must be float32 or float64"):
        long_conv.named(name)(*arguments(10, 2, 3, torch.bfloat16))

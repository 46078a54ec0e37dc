"""The Kalman filter with a full covariance: the compiled form against the definition, and that against textbooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.hardware.probe import probe
from synthe_core.ops.dispatch import Call
from synthe_core.ops.kalman_filter import kalman_filter
from synthe_core.ops.matrix_kalman_filter import matrix_kalman_filter

NAMES = ("precision", "information", "transition", "process_noise", "mean", "covariance")


def symmetric(root: Tensor) -> Tensor:
    return root @ root.mT


def problem(batch: int, time: int, heads: int, size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = [
        symmetric(draw(batch, time, heads, size, size)),
        draw(batch, time, heads, size),
        draw(heads, size).sigmoid(),
        draw(heads, size).sigmoid(),
        draw(batch, heads, size),
        symmetric(draw(batch, heads, size, size)),
    ]
    return [part.to(dtype) for part in parts]


def outcome(kernel: str, inputs: list[Tensor], active: Tensor | None = None) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    results = matrix_kalman_filter.named(kernel)(*leaves, active)
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum() for x in results)
    slopes = torch.autograd.grad(loss, leaves)
    outputs = dict(zip(("mean out", "covariance out"), (x.detach() for x in results), strict=True))
    return outputs | dict(zip(NAMES, slopes, strict=True))


needs_compiler = pytest.mark.skipif(probe().compiler is None, reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("heads, size", [(1, 1), (3, 4), (19, 5), (16, 8), (2, 16)])
def test_the_compiled_form_equals_the_definition(heads: int, size: int, padded: bool) -> None:
    inputs = problem(2, 7, heads, size)
    active = torch.rand(2, 7, generator=torch.Generator().manual_seed(1)) > 0.3 if padded else None
    expected, actual = outcome("reference", inputs, active), outcome("native", inputs, active)
    for name, value in expected.items():
        got = actual[name]
        if name in ("precision", "covariance"):  # of a symmetric matrix only the symmetric part is defined
            got, value = got + got.mT, value + value.mT
        error = (got - value).abs().max() / value.abs().max().clamp_min(1e-30)
        assert error < 1e-9, f"{name}: {float(error):.1e}"


@needs_compiler
def test_in_float32() -> None:
    inputs = problem(2, 131, 3, 6)
    expected, actual = outcome("reference", inputs), outcome("native", [x.float() for x in inputs])
    for name in ("mean out", "covariance out"):
        assert (actual[name].double() - expected[name]).abs().max() / expected[name].abs().max() < 1e-4


@pytest.mark.parametrize("kernel", ["reference", pytest.param("native", marks=needs_compiler)])
def test_gradients_are_those_of_differences(kernel: str) -> None:
    roots = problem(1, 3, 2, 3)
    leaves = [x.requires_grad_() for x in roots]

    def run(precision: Tensor, information: Tensor, a: Tensor, q: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        filtered = matrix_kalman_filter.named(kernel)(
            symmetric(precision), information, a, q, mean, symmetric(covariance)
        )
        return torch.cat([filtered.mean.flatten(), filtered.covariance.flatten()])

    assert torch.autograd.gradcheck(run, leaves)


def test_one_channel_a_head_is_the_diagonal_filter() -> None:
    precision, information, a, q, mean, covariance = problem(2, 9, 5, 1)
    noise = 1 / precision[..., 0, 0]
    expected = kalman_filter.reference(
        information[..., 0] * noise, a[:, 0], q[:, 0], noise, mean[..., 0], covariance[..., 0, 0]
    )
    actual = matrix_kalman_filter.reference(precision, information, a, q, mean, covariance)
    torch.testing.assert_close(actual.mean[..., 0], expected.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(actual.covariance[..., 0, 0], expected.variance, rtol=1e-10, atol=1e-10)


def test_equals_the_covariance_form_of_the_textbooks() -> None:
    torch.manual_seed(0)
    time, size, channels = 6, 3, 5
    loading, z = torch.randn(channels, size).double(), torch.randn(time, channels).double()
    noise = torch.rand(time, channels).double() + 0.1
    a, q = torch.rand(1, size).double(), torch.rand(1, size).double()
    information = (loading.T / noise[:, None]) @ z[..., None]
    precision = (loading.T / noise[:, None]) @ loading
    x, P = torch.zeros(size).double(), torch.eye(size).double()
    filtered = matrix_kalman_filter.reference(
        precision[None, :, None], information[None, :, None, :, 0], a, q, x[None, None], P[None, None]
    )
    for t in range(time):
        prior = torch.diag(a[0]) @ P @ torch.diag(a[0]) + torch.diag(q[0])
        total = loading @ prior @ loading.T + torch.diag(noise[t])
        gain = prior @ loading.T @ torch.linalg.inv(total)
        x = a[0] * x + gain @ (z[t] - loading @ (a[0] * x))
        P = (torch.eye(size).double() - gain @ loading) @ prior
        torch.testing.assert_close(filtered.mean[0, t, 0], x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(filtered.covariance[0, t, 0], P, rtol=1e-9, atol=1e-9)


def test_bad_input_is_refused() -> None:
    inputs = problem(1, 2, 2, 3)
    with pytest.raises(InputError, match="must be float32 or float64"):
        matrix_kalman_filter(*[x.bfloat16() for x in inputs])
    with pytest.raises(InputError, match="precision is"):
        matrix_kalman_filter(inputs[0], inputs[1][..., :2], *inputs[2:])
    wide = problem(1, 1, 1, 17)
    call = Call.of(dict(zip(NAMES, wide, strict=True)))
    reason = next(k for k in matrix_kalman_filter.kernels if k.name == "native").refusal(probe(), call)
    assert reason is not None and "16 x 16" in reason

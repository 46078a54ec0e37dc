"""The kernels of Mamba-3's recurrence equal its definition: outputs, state and every gradient, from any state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from synthe_core.ops.dispatch import Call
from synthe_core.ops.mamba3_scan import composed, mamba3_scan

NAMES = ("q", "k", "v", "delta", "trapezoid", "log_decay", "last_k", "last_v", "state")


def problem(time: int, rank: int, decay: float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    q, k, v = draw(2, time, 3, rank, 6), draw(2, time, 3, rank, 6), draw(2, time, 3, rank, 5)
    delta, trapezoid = draw(2, time, 3).exp(), draw(2, time, 3).sigmoid()
    parts = (q, k, v, delta, trapezoid, -decay * delta, draw(2, 3, rank, 6), draw(2, 3, rank, 5), draw(2, 3, 6, 5))
    return [part.to(dtype) for part in parts]


def outcome(kernel: str, inputs: list[Tensor]) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    results = mamba3_scan.named(kernel)(*leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum() for x in results)
    slopes = torch.autograd.grad(loss, leaves)
    return dict(zip(("o", "S"), (x.detach() for x in results), strict=True)) | dict(zip(NAMES, slopes, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.05, 30.0])
@pytest.mark.parametrize(("kernel", "rank"), [("composed", 1), ("chunked", 1), ("chunked", 3)])
@pytest.mark.parametrize("time", [1, 2, 64, 131])
def test_kernels_equal_the_recurrence(kernel: str, rank: int, time: int, decay: float) -> None:
    inputs = problem(time, rank, decay)
    expected, actual = outcome("reference", inputs), outcome(kernel, inputs)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-9, atol=1e-9 * float(value.abs().max()), msg=f"{name} differs"
        )


@pytest.mark.parametrize(("kernel", "rank"), [("composed", 1), ("chunked", 3)])
def test_in_float32(kernel: str, rank: int) -> None:
    inputs = problem(131, rank, 0.05)
    expected, actual = outcome("reference", inputs), outcome(kernel, [x.float() for x in inputs])
    for name, value in expected.items():
        error = (actual[name].double() - value).abs().max() / value.abs().max()
        assert error < 1e-5, (name, float(error))


def test_several_writes_are_refused_in_words() -> None:
    inputs = dict(zip(NAMES, problem(3, 2, 0.1), strict=True))
    assert "one query and one key" in str(composed.refusal(None, Call.of(inputs)))  # type: ignore[arg-type]

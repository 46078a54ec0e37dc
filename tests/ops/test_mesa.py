"""Mesa directly and by conjugate gradients equals the exact solution: outputs, state and every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.ops.mesa import mesa

NAMES = ("q", "k", "v", "beta", "log_decay", "ridge", "keys", "values")


def problem(time: int, decay: float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    q, k, v = F.normalize(draw(2, time, 3, 6), dim=-1), F.normalize(draw(2, time, 3, 6), dim=-1), draw(2, time, 3, 5)
    beta, log_decay, ridge = draw(2, time, 3).sigmoid(), -decay * draw(2, time, 3).sigmoid(), 0.25 + draw(3, 6).exp()
    root = draw(2, 3, 6, 6)
    parts = (q, k, v, beta, log_decay, ridge, root @ root.transpose(-1, -2), draw(2, 3, 6, 5))
    return [part.to(dtype) for part in parts]


def outcome(kernel: str, inputs: list[Tensor]) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    results = mesa.named(kernel)(*leaves[:6], 30, *leaves[6:])
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum() for x in results)
    slopes = torch.autograd.grad(loss, leaves)
    return dict(zip(("o", "A", "C"), (x.detach() for x in results), strict=True)) | dict(
        zip(NAMES, slopes, strict=True)
    )


@pytest.mark.parametrize("decay", [0.0, 0.05, 3.0])
@pytest.mark.parametrize("kernel", ["conjugate-gradient", "direct"])
@pytest.mark.parametrize("time", [1, 2, 63, 64, 131])
def test_kernels_equal_the_exact_solution(kernel: str, time: int, decay: float) -> None:
    inputs = problem(time, decay)
    expected, actual = outcome("reference", inputs), outcome(kernel, inputs)
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(
            actual[name], value, rtol=1e-9, atol=1e-9 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_in_float32() -> None:
    inputs = problem(131, 0.05)
    expected, actual = outcome("reference", inputs), outcome("conjugate-gradient", [x.float() for x in inputs])
    for name in ("o", "A", "C", "q", "k", "v"):
        error = (actual[name].double() - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 1e-4, (name, float(error))


def test_the_memory_is_the_minimum_of_the_weighted_regression() -> None:
    q, k, v, beta, log_decay, ridge, _, _ = problem(9, 0.5)
    every = torch.eye(6, dtype=torch.float64)
    read = [
        mesa(torch.cat([q[:, :8], row.expand(2, 1, 3, 6)], 1), k, v, beta, log_decay, ridge, 30, None, None)[0]
        for row in every
    ]
    M = torch.stack([o[0, -1, 0] for o in read]).requires_grad_()  # M qs for every unit vector q
    weight = beta[0, :, 0] * (log_decay[0, :, 0].sum() - log_decay[0, :, 0].cumsum(0)).exp()
    loss = (weight[:, None] * (k[0, :, 0] @ M - v[0, :, 0]).square()).sum() + (ridge[0, :, None] * M.square()).sum()
    (slope,) = torch.autograd.grad(loss, M)
    assert slope.abs().max() < 1e-12

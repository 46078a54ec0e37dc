"""What the tests of the two memory operators share: inputs, and outputs with every gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("q", "k", "v", "beta", "log_decay", "state")


def arguments(
    time: int,
    key: int = 6,
    value: int = 10,
    *,
    heads: int = 2,
    key_heads: int | None = None,
    decay: float | None = 1.0,
    state: bool = True,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor | None]:
    """Two rows; keys of length 1, beta in [0, 2] with some exact zeros, log decays in [-decay, 0]."""
    generator = torch.Generator().manual_seed(time)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    fewer = key_heads or heads
    q, k, v = draw(2, time, fewer, key), F.normalize(draw(2, time, fewer, key), dim=-1), draw(2, time, heads, value)
    beta = 2 * torch.rand(2, time, heads, generator=generator, dtype=torch.float64).to(dtype)
    beta[:, ::5, 0] = 0
    log_decay = None if decay is None else -decay * torch.rand(2, time, heads, generator=generator).to(dtype)
    return [q, k, v, beta, log_decay, draw(2, heads, key, value) if state else None]


def outcome(rule: Any, inputs: list[Tensor | None]) -> dict[str, Tensor]:
    """Outputs, final state, and the gradients of a fixed random projection of both, by name."""
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    o, state = rule(*leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum() for x in (o, state))
    loss.backward()
    slopes = {f"d{name}": x.grad for name, x in zip(NAMES, leaves, strict=True) if x is not None}
    return {"o": o.detach(), "S": state.detach()} | slopes


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Largest difference of each tensor within `tolerance` of its largest number."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].isfinite().all(), f"{name} is not finite"
        error = (actual[name].double() - tensor.double()).abs().max() / tensor.abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"

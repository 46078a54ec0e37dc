"""Retention: its equation from any state, and fla's parallel form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.retention import Retention
from tests.layers.mixers import wide
from tests.peers import fla_naive

WIDTH = 12


def make(**keys: Any) -> Retention:
    torch.manual_seed(0)
    learner = Retention(Retention.Config(**keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


def turned(heads: Tensor, first: int = 0) -> Tensor:
    """[B, T, H, K] with the pairs (i, i + K/2) turned by their positions as complex numbers."""
    half = heads.shape[-1] // 2
    position = torch.arange(first, first + heads.shape[1], dtype=torch.float64)
    angle = position[:, None, None] * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    out = torch.complex(heads[..., :half], heads[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([out.real, out.imag], -1)


def parts(learner: Retention, x: Tensor, first: int = 0) -> tuple[Tensor, ...]:
    qk, v, gate = learner.project(x).split(learner.features, -1)
    q, k = turned(qk.unflatten(-1, (2 * learner.config.heads, -1)), first).chunk(2, dim=2)
    return q, k, v.unflatten(-1, (learner.config.heads, -1)), gate


def test_equals_flas_parallel_form() -> None:
    naive = fla_naive("ops/retention/naive.py").naive_retention
    learner, x = make(heads=3), torch.randn(2, 33, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        q, k, v, gate = parts(learner, x)
        with wide():
            o = naive(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2)
        expected = learner.out(F.rms_norm(o, (8,), learner.norm, 1e-5).flatten(2) * F.silu(gate))
        torch.testing.assert_close(learner(x, None, Pass.over(x))[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rope", [10_000.0, None])
def test_is_the_equation_of_its_docstring_from_any_state(rope: float | None) -> None:
    learner = make(heads=2, key_size=4, value_size=3, rope=rope)
    x, state = torch.randn(1, 7, WIDTH, dtype=torch.float64), torch.randn(1, 2, 4, 3, dtype=torch.float64)
    y, after = learner(x, state, Pass.over(x, start=torch.tensor([11])))
    qk, v, gate = learner.project(x).split(learner.features, -1)
    q, k, v, gate = parts(learner, x, 11)
    if rope is None:
        q, k = qk.unflatten(-1, (4, 4)).chunk(2, dim=2)
    S, gamma = state[0], learner.log_decays(torch.float64).exp()
    torch.testing.assert_close(gamma, torch.tensor([31 / 32, 63 / 64], dtype=torch.float64), rtol=1e-14, atol=0)
    for t in range(7):
        S = gamma[:, None, None] * S + k[0, t, :, :, None] * v[0, t, :, None]
        o = torch.einsum("hkv,hk->hv", S, q[0, t]) / 2
        expected = learner.out(F.rms_norm(o, (3,), learner.norm, 1e-5).flatten() * F.silu(gate[0, t]))
        torch.testing.assert_close(y[0, t], expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(after[0], S, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"heads": 5}, "not divisible by heads 5"), ({"heads": 4}, "even key_size, not 3")],
    ids=str,
)
def test_bad_settings_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**keys)

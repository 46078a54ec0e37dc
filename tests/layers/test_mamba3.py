"""Mamba-3: the reference step of state-spaces' repository from any state, and what several equal writes are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.mamba3 import Mamba3, Mamba3State
from synthe_core.ops.dispatch import use_kernels

WIDTH = 12
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
SINGLE = {"head_size": 6, "state_size": 6}
SEVERAL = {"head_size": 8, "state_size": 4, "rank": 3, "groups": 3, "norm": True, "norm_eps": 1e-2}
CASES = [
    (SINGLE, "reference"),
    (SINGLE, "composed"),
    (SINGLE | {"rate": "heavy_tail", "rope_fraction": 1.0, "groups": 2, "norm": True}, "chunked"),
    (SEVERAL, "reference"),
    (SEVERAL, "chunked"),
]
each_case = pytest.mark.parametrize(("keys", "kernel"), CASES, ids=lambda value: str(value))


def make(**keys: Any) -> Mamba3:
    torch.manual_seed(0)
    learner = Mamba3(Mamba3.Config(**keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        learner.dt_bias.add_(4)  # steps of about 1, so that angles go round
    return learner


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """x [B, N] as complex numbers of adjacent pairs, the first of which are multiplied by exp(i angle)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    by = torch.ones_like(pairs)
    by[..., : angle.shape[-1]] = torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(pairs * by).flatten(-2)


def by_steps(learner: Mamba3, x: Tensor, state: Mamba3State) -> tuple[Tensor, Mamba3State]:
    """The layer token by token and head by head, as the repository's `step` and its reference recurrence compute it."""
    config, heads, size = learner.config, learner.heads, learner.config.head_size
    rank, groups, eps = config.rank, config.groups, config.norm_eps
    memory, angle, last_k = (part.clone() for part in state[:3])
    last_v, outputs = state.value, []
    for t in range(x.shape[1]):
        z, u, B, C, dt, a, trap, theta = learner.in_proj(x[:, t]).split(learner.features, -1)
        B, C = (
            F.rms_norm(part.unflatten(-1, (rank, groups, -1)), (config.state_size,), norm.weight, eps)
            for part, norm in ((B, learner.B_norm), (C, learner.C_norm))
        )
        u, z = u.unflatten(-1, (heads, size)), z.unflatten(-1, (heads, size))
        delta = F.softplus(dt + learner.dt_bias)
        rate = F.softplus(a) if config.rate == "softplus" else torch.where(a >= 0, 1 + a, 1 / (1 - a))
        alpha, mix, read = torch.exp(-rate * delta), trap.sigmoid(), []
        angle = angle + math.pi * theta.tanh()[:, None] * delta[..., None]
        keys = torch.empty_like(last_k)
        for h in range(heads):
            group, total = h // (heads // groups), torch.zeros_like(u[:, h])
            d, lam, ratio = delta[:, h, None, None], mix[:, h, None, None], alpha[:, h, None, None]
            memory[:, h] = ratio * memory[:, h]
            scales = learner.mimo_x[h] if rank > 1 else torch.ones(1, size)
            for r in range(rank):
                keys[:, h, r] = turned(B[:, r, group] + learner.B_bias[h, r], angle[:, h])
                old = last_k[:, h, r, :, None] * (last_v[:, h] * scales[r])[:, None]
                new = keys[:, h, r, :, None] * (u[:, h] * scales[r])[:, None]
                memory[:, h] += (1 - lam) * d * ratio * old + lam * d * new
            for r in range(rank):
                q = turned(C[:, r, group] + learner.C_bias[h, r], angle[:, h])
                o = (q[:, None] @ memory[:, h])[:, 0] + learner.D[h] * u[:, h] * scales[r]
                if config.norm:
                    o = F.rms_norm(o, (size,), learner.norm.weight.unflatten(0, (heads, -1))[h], eps)
                gate, out = (learner.mimo_z[h, r], learner.mimo_o[h, r]) if rank > 1 else (1, 1)
                total = total + out * o * F.silu(gate * z[:, h])
            read.append(total)
        outputs.append(learner.out_proj(torch.cat(read, -1)))
        last_k, last_v = keys, u
    return torch.stack(outputs, 1), Mamba3State(memory, angle, last_k, last_v)


@each_case
def test_is_the_repositorys_reference_step_from_any_state(keys: dict[str, Any], kernel: str) -> None:
    learner, x = make(**keys), torch.randn(2, 41, WIDTH, dtype=torch.float64)
    state = Mamba3State(*(torch.randn_like(leaf) for leaf in learner.init_state(2)))
    with torch.no_grad(), use_kernels(mamba3_scan=kernel):
        y, after = learner(x, state, Pass.over(x))
        expected, last = by_steps(learner, x, state)
    torch.testing.assert_close(y, expected, **CLOSE)
    assert last.angle.abs().max() > 4 * math.pi and after.angle.abs().max() <= math.pi
    last = last._replace(angle=torch.remainder(last.angle + math.pi, 2 * math.pi) - math.pi)
    for one, other in zip(after, last, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_equal_ranks_are_one_of_as_many_times_the_strength() -> None:
    """R equal keys and queries with v / R write what one writes, and R readings / R are one reading."""
    one, several = make(**SINGLE), make(**SINGLE, rank=2)
    with torch.no_grad():
        z, u, B, C, *rest = one.in_proj.weight.split(one.features)
        several.in_proj.weight.copy_(torch.cat([z, u, B, B, C, C, *rest]))
        for name in ("B_bias", "C_bias"):
            getattr(several, name).copy_(getattr(one, name).expand(-1, 2, -1))
        for name in ("dt_bias", "D", "B_norm.weight", "C_norm.weight", "out_proj.weight"):
            several.get_parameter(name).copy_(one.get_parameter(name))
        for name, value in (("mimo_x", 0.5), ("mimo_z", 1.0), ("mimo_o", 0.5)):
            several.get_parameter(name).fill_(value)
        several.D.copy_(2 * one.D)
        x = torch.randn(2, 33, WIDTH, dtype=torch.float64)
        torch.testing.assert_close(several(x, None, Pass.over(x))[0], one(x, None, Pass.over(x))[0], **CLOSE)


def test_initial_values_are_the_papers() -> None:
    learner = Mamba3(Mamba3.Config(rank=4), 512)
    step = F.softplus(learner.dt_bias)
    assert learner.heads == 16 and step.min() > 0.99e-3 and step.max() < 0.101
    assert learner.angles == 16 and torch.equal(learner.B_bias, torch.ones(16, 4, 64))
    assert torch.equal(learner.mimo_x, torch.full((16, 4, 64), 0.25))


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ({"head_size": 7}, "do not split into heads of 7", "head_size: "),
        ({"head_size": 8, "groups": 2}, "3 heads do not split into 2 groups", "groups: "),
    ],
    ids=["head_size", "groups"],
)
def test_impossible_sizes_say_why(keys: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        make(**keys)
    assert hint in (raised.value.hint or "")

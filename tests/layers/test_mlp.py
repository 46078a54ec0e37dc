"""The feed-forward learner: what it computes with each activation, gated or not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.mlp import MLP

FORMULAS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
}


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", FORMULAS)
def test_it_is_its_equation(activation: str, gated: bool, bias: bool, scale: float) -> None:
    torch.manual_seed(0)
    scale = scale if gated else 1.0
    config = MLP.Config(hidden=11, activation=activation, gated=gated, bias=bias, gate_scale=scale)  # type: ignore[arg-type]
    mlp = MLP(config, 6).double()
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    inner = F.linear(x, *[p for p in (mlp.gate_up if gated else mlp.up).parameters()])
    formula = FORMULAS[activation]
    inner = formula(scale * inner[..., :11]) * inner[..., 11:] if gated else formula(inner)
    expected = F.linear(inner, *mlp.out.parameters())
    y, state = mlp(x, None, Pass.over(x))
    torch.testing.assert_close(y, expected)
    assert state == ()


def test_without_a_gate_there_is_one_map_in_and_its_cost() -> None:
    mlp = MLP(MLP.Config(hidden=12, gated=False), 8)
    assert {name for name, _ in mlp.named_parameters()} == {"up.weight", "out.weight"}
    assert mlp.flops(10) == 2 * (12 * 8 + 8 * 12)


def test_a_scale_needs_a_gate() -> None:
    with pytest.raises(InputError, match="gate_scale"):
        MLP(MLP.Config(gated=False, gate_scale=0.5), 8)

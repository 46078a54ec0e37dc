"""Mixing matrices: M v is what an operator returns, and gradients go through M as through the operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.introspection.linear_memory import RULES, linear_memory
from synthe_core.layers import LAYERS
from synthe_core.ops.dispatch import OPS
from synthe_core.ops.mlstm import EMPTY_SCALE
from synthe_core.training.distillation.mixing import LINEAR_OPS, attention_matrix, mixing_matrix

list(map(LAYERS.__getitem__, LAYERS))  # operators are in their table once they are imported
B, H, K, V = 2, 4, 5, 3


def call(op: str, time: int, groups: int = H) -> dict[str, Any]:
    """Arguments of `op` in float64, with real decays and strengths, from an empty state."""
    torch.manual_seed(time)
    unit = torch.nn.functional.normalize
    q, k = (unit(torch.randn(B, time, groups, K, dtype=torch.float64), dim=-1) for _ in range(2))
    v = torch.randn(B, time, H, V, dtype=torch.float64)
    gate = torch.rand(B, time, H, dtype=torch.float64)
    channels = torch.rand(B, time, H, K, dtype=torch.float64)
    inputs: dict[str, Any] = {"q": q, "k": k, "v": v, "state": None}
    if op == "mlstm":
        del inputs["state"]
        inputs |= {"log_input": 3 * torch.randn_like(gate), "log_forget": -3 * gate}
        inputs |= {"memory": v.new_zeros(B, H, K, V + 1), "scale": v.new_full((B, H), EMPTY_SCALE)}
    elif op == "generalized_delta_rule":
        a = unit(torch.randn_like(q), dim=-1)
        inputs |= {"a": -a, "b": a * channels, "log_decay": -2 * channels}
    elif op == "gated_linear_attention":
        inputs["log_decay"] = -40 * channels**4
    else:
        inputs |= {"beta": 2 * gate, "log_decay": -5 * channels**4 if op == "kda" else -(gate**4)}
    return inputs


def test_every_operator_with_a_linear_memory_has_a_matrix() -> None:
    assert LINEAR_OPS == RULES
    with pytest.raises(InputError, match="linear_scan"):
        mixing_matrix("linear_scan", {})


@pytest.mark.parametrize("op", sorted(LINEAR_OPS))
@pytest.mark.parametrize("time", [1, 16, 53])
def test_the_matrix_times_the_values_is_the_reference_output(op: str, time: int) -> None:
    inputs = call(op, time)
    expected = OPS[op].reference(**inputs)[0]
    matrix = mixing_matrix(op, inputs)
    assert matrix.shape == (B, H, time, time)
    assert (matrix.triu(1) == 0).all()
    torch.testing.assert_close((matrix @ inputs["v"].transpose(1, 2)).transpose(1, 2), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("op", sorted(LINEAR_OPS))
def test_it_has_the_coefficients_that_introspection_traces(op: str) -> None:
    inputs = call(op, 70)
    torch.testing.assert_close(
        mixing_matrix(op, inputs)[0], linear_memory(op, inputs).rows(0, 70)[0], rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("op", ["delta_rule", "delta_rule_error", "linear_attention"])
def test_heads_of_values_share_heads_of_queries(op: str) -> None:
    inputs = call(op, 20, groups=2)
    expected = OPS[op].reference(**inputs)[0].transpose(1, 2)
    torch.testing.assert_close(mixing_matrix(op, inputs) @ inputs["v"].transpose(1, 2), expected)


@pytest.mark.parametrize("op", sorted(LINEAR_OPS))
def test_gradients_are_those_of_the_operator(op: str) -> None:
    inputs = call(op, 37)
    names = [n for n, x in inputs.items() if x is not None and n not in ("v", "memory", "scale")]
    leaves = {name: inputs[name].clone().requires_grad_() for name in names}
    weight = torch.randn(B, 37, H, V, dtype=torch.float64)
    through = (mixing_matrix(op, inputs | leaves) @ inputs["v"].transpose(1, 2)).transpose(1, 2)
    expected = torch.autograd.grad((OPS[op].reference(**inputs | leaves)[0] * weight).sum(), list(leaves.values()))
    actual = torch.autograd.grad((through * weight).sum(), list(leaves.values()))
    for name, mine, theirs in zip(leaves, actual, expected, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10, msg=name)


def test_decays_of_any_size_stay_finite() -> None:
    inputs = call("gated_linear_attention", 100)
    inputs["log_decay"] = (inputs["log_decay"] * 50).float().requires_grad_()
    inputs |= {name: inputs[name].float() for name in ("q", "k", "v")}
    matrix = mixing_matrix("gated_linear_attention", inputs)
    (gradient,) = torch.autograd.grad(matrix.square().sum(), inputs["log_decay"])
    assert torch.isfinite(matrix).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("window,cap", [(1 << 17, None), (5, None), (9, 0.7)])
@pytest.mark.parametrize("padded", [False, True])
def test_the_matrix_of_attention(window: int, cap: float | None, padded: bool) -> None:
    torch.manual_seed(0)
    q = torch.randn(B, 30, H, K, dtype=torch.float64)
    k, v = torch.randn(2, B, 30, 2, K, dtype=torch.float64)
    valid = torch.arange(30) < torch.tensor([[30], [12]]) if padded else None
    inputs = {"q": q, "k": k, "v": v, "window": window, "valid": valid, "cap": cap}
    matrix = attention_matrix(inputs)
    expected = OPS["window_attention"].reference(**inputs).transpose(1, 2)
    torch.testing.assert_close(matrix @ v.repeat_interleave(2, 2).transpose(1, 2), expected)
    rows = matrix.sum(-1)
    torch.testing.assert_close(rows[0], torch.ones_like(rows[0]))


@pytest.mark.parametrize("op", ["gated_linear_attention", "kda", "generalized_delta_rule"])
def test_a_decay_that_forgets_everything_has_finite_gradients(op: str) -> None:
    """Also at the first token, whose decay has nothing to act on."""
    inputs = call(op, 40)
    decay = inputs["log_decay"].clone()
    decay[:, [0, 17, 18]] = -500.0
    inputs["log_decay"] = decay.requires_grad_()
    matrix = mixing_matrix(op, inputs)
    expected = OPS[op].reference(**inputs)[0].transpose(1, 2)
    torch.testing.assert_close(matrix @ inputs["v"].transpose(1, 2), expected, rtol=1e-9, atol=1e-10)
    (gradient,) = torch.autograd.grad(matrix.square().sum(), decay)
    assert torch.isfinite(gradient).all()

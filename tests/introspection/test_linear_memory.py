"""Effective attention of linear memories, against what operators answer and what a change of a value does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from synthe_core.introspection.linear_memory import RULES, linear_memory, reconstruct
from synthe_core.layers import LAYERS
from synthe_core.ops.dispatch import OPS
from synthe_core.ops.mlstm import EMPTY_SCALE

list(map(LAYERS.__getitem__, LAYERS))  # operators are in their table once they are imported

H, K, V = 3, 5, 4


def call(op: str, time: int, dtype: torch.dtype = torch.float64, started: bool = True) -> dict[str, Any]:
    """Arguments of `op` with keys of length 1, real decays and, where `started`, a first state."""
    torch.manual_seed(time)
    unit = torch.nn.functional.normalize
    q, k = (unit(torch.randn(1, time, H, K), dim=-1) for _ in range(2))
    v = torch.randn(1, time, H, V)
    inputs: dict[str, Any] = {"q": q, "k": k, "v": v}
    if op == "mlstm":
        inputs |= {"log_input": 2 * torch.randn(1, time, H), "log_forget": -torch.rand(1, time, H) * 3}
        inputs |= {"memory": torch.randn(1, H, K, V + 1), "scale": torch.randn(1, H)}
        if not started:
            inputs |= {"memory": torch.zeros(1, H, K, V + 1), "scale": torch.full((1, H), EMPTY_SCALE)}
    elif op == "generalized_delta_rule":
        a = unit(torch.randn(1, time, H, K), dim=-1)
        inputs |= {"a": -a, "b": a * torch.rand(1, time, H, K), "log_decay": -torch.rand(1, time, H, K)}
    elif op == "gated_linear_attention":
        inputs["log_decay"] = -torch.rand(1, time, H, K)
    else:
        per_channel = (K,) if op == "kda" else ()
        inputs |= {"beta": 2 * torch.rand(1, time, H), "log_decay": -(torch.rand(1, time, H, *per_channel) ** 4)}
    if op != "mlstm":
        inputs["state"] = torch.randn(1, H, K, V) if started else None
    return {name: value.to(dtype) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


@pytest.mark.parametrize("op", sorted(RULES))
@pytest.mark.parametrize("time", [1, 31, 33, 100])
@pytest.mark.parametrize("started", [True, False])
def test_reconstruction_equals_the_reference_output(op: str, time: int, started: bool) -> None:
    inputs = call(op, time, started=started)
    expected = OPS[op].reference(**inputs)[0][0].transpose(0, 1)
    memory = linear_memory(op, inputs)
    for start, stop in {(0, time), (time // 2, time), (0, max(1, time // 3))}:
        torch.testing.assert_close(reconstruct(memory, start, stop), expected[:, start:stop], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", sorted(RULES))
def test_reconstruction_equals_the_output_of_float32_kernels(op: str) -> None:
    inputs = call(op, 300, torch.float32)
    expected = OPS[op](**inputs)[0][0].transpose(0, 1)
    error = (reconstruct(linear_memory(op, inputs), 0, 300) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("op", sorted(RULES))
def test_a_coefficient_is_the_change_that_a_written_value_makes(op: str) -> None:
    """By the operator's own gradient: dO_t / dv_s is A_ts times the identity."""
    inputs = call(op, 40)
    value = inputs["v"].clone().requires_grad_()
    out = OPS[op].reference(**(inputs | {"v": value}))[0]
    coefficients, _ = linear_memory(op, inputs).rows(0, 40)
    for head, t, channel in [(0, 39, 0), (2, 17, 3), (1, 0, 1)]:
        (grad,) = torch.autograd.grad(out[0, t, head, channel], value, retain_graph=True)
        torch.testing.assert_close(grad[0, :, head, channel], coefficients[head, t], rtol=1e-8, atol=1e-10)
        assert (grad[0, :, head].abs().sum(0)[torch.arange(V) != channel] == 0).all() or op == "mlstm"


def test_overwritten_values_are_not_read() -> None:
    """The erase term: a key written twice at full strength answers its second value, and the first counts nothing."""
    k = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 2]), K).double()[None, :, None]
    inputs = {"q": k, "k": k, "v": torch.randn(1, 4, 1, V).double(), "beta": torch.ones(1, 4, 1).double()}
    query = inputs | {"q": k[:, :1].expand_as(k), "log_decay": None, "state": None}
    erased = linear_memory("delta_rule", query).rows(3, 4)[0][0, 0]
    assert erased.tolist() == pytest.approx([0, 0, 1, 0], abs=1e-12)
    added = linear_memory("linear_attention", query).rows(3, 4)[0][0, 0]
    assert added.tolist() == [1, 0, 1, 0]


def test_gates_of_any_size_stay_finite() -> None:
    inputs = call("mlstm", 64)
    inputs["log_input"] = torch.linspace(-300, 300, 64).double()[None, :, None].expand(1, 64, H)
    coefficients, _ = linear_memory("mlstm", inputs).rows(0, 64)
    assert torch.isfinite(coefficients).all()
    strong = call("kda", 64)
    strong["log_decay"] = torch.full_like(strong["log_decay"], -math.inf)
    assert torch.isfinite(
        linear_memory("kda", strong | {"log_decay": strong["log_decay"].clamp_min(-800)}).rows(0, 64)[0]
    ).all()

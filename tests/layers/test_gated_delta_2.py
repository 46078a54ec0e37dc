"""Gated DeltaNet-2: fla's naive recurrence, its equation from any state, and KDA as a special case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.layers.gated_delta_2 import GatedDelta2, GatedDelta2State
from synthe_core.layers.learner import Pass
from synthe_core.ops.generalized_delta_rule import generalized_delta_rule
from synthe_core.ops.kda import kda
from tests.layers.mixers import wide
from tests.peers import fla_naive

WIDTH = 12
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def make(**keys: Any) -> GatedDelta2:
    torch.manual_seed(0)
    learner = GatedDelta2(GatedDelta2.Config(**keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("name", ["naive_recurrent_gdn2", "naive_chunk_gdn2"])
@pytest.mark.parametrize("keys", [{"heads": 3}, {"heads": 2, "key_size": 5, "value_size": 4, "erase_max": 2}], ids=str)
def test_equals_the_equations_of_flas_layer(keys: dict[str, Any], name: str) -> None:
    naive = getattr(fla_naive("ops/gdn2/naive.py"), name)
    learner, x = make(conv=0, **keys), torch.randn(2, 19, WIDTH, dtype=torch.float64)
    heads, key, value = keys["heads"], learner.key, learner.value
    state = torch.randn(2, heads, key, value, dtype=torch.float64)
    with torch.no_grad():
        mixed, b, w, low, gate = learner.project(x).split(learner.features, -1)
        q, k, v = F.silu(mixed).split([heads * key, heads * key, heads * value], -1)
        g = F.softplus(learner.decay(low) + learner.dt_bias)
        q, k, v, g, b, w = (part.unflatten(-1, (heads, -1)) for part in (q, k, v, g, b, w))
        g = -learner.A_log.exp()[:, None] * g
        b = keys.get("erase_max", 1) * b.sigmoid()
        with wide():
            o, last = naive(
                *(unit(q), unit(k), v, g, b, w.sigmoid()), scale=1.0, initial_state=state, output_final_state=True
            )
        o = F.rms_norm(o, (value,), learner.norm, 1e-5).flatten(2)
        expected = learner.out(o * learner.gate(gate).sigmoid())
        y, after = learner(x, GatedDelta2State(state, learner.init_state(2).conv), Pass.over(x))
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(after.memory, last, **CLOSE)


def test_is_the_equation_of_its_docstring_from_any_state() -> None:
    learner = make(heads=1, key_size=3, value_size=4, conv=3, conv_bias=True)
    x = torch.randn(1, 6, WIDTH, dtype=torch.float64)
    state = GatedDelta2State(*(torch.randn_like(leaf) for leaf in learner.init_state(1)))
    y, after = learner(x, state, Pass.over(x))
    mixed, b, w, low, gate = learner.project(x).split(learner.features, -1)
    past, S = torch.cat([state.conv, mixed], 1), state.memory[0, 0]
    assert learner.conv1d is not None and learner.conv1d.bias is not None
    for t in range(6):
        taps = (learner.conv1d.weight[:, 0].T * past[0, t : t + 3]).sum(0) + learner.conv1d.bias
        q, k, v = F.silu(taps).split([3, 3, 4])
        q, k = unit(q), unit(k)
        alpha = torch.exp(-learner.A_log.exp() * F.softplus(learner.decay(low[0, t]) + learner.dt_bias))
        erased = torch.eye(3, dtype=x.dtype) - torch.outer(k, b[0, t].sigmoid() * k)
        S = erased @ (alpha[:, None] * S) + torch.outer(k, w[0, t].sigmoid() * v)
        o = F.rms_norm(S.T @ q, (4,), learner.norm, 1e-5)
        torch.testing.assert_close(y[0, t], learner.out(o * learner.gate(gate[0, t]).sigmoid()), **CLOSE)
    torch.testing.assert_close(after.memory[0, 0], S, **CLOSE)


def test_equal_gates_over_channels_are_kimis_delta_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 9, 3, 4, dtype=torch.float64) for _ in range(3))
    beta, log_decay = torch.rand(2, 9, 3, dtype=torch.float64), -torch.rand(2, 9, 3, 4, dtype=torch.float64)
    k, wide_beta = unit(k), beta[..., None]
    expected = kda(q, k, v, beta, log_decay, None)
    actual = generalized_delta_rule(q, k, wide_beta * v, log_decay.exp() * wide_beta * k, -k, log_decay, None)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match="not divisible by heads 5"):
        make(heads=5)

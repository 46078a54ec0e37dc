"""Gated linear attention: its equation from any state, and fla's naive recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.layers.gla import GLA, GLAState
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace
from tests.layers.mixers import wide
from tests.peers import fla_naive

WIDTH = 12


def make(**keys: Any) -> GLA:
    torch.manual_seed(0)
    learner = GLA(GLA.Config(**keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


@pytest.mark.parametrize(
    "keys",
    [{"heads": 2}, {"heads": 4, "kv_heads": 2, "key_size": 3, "value_size": 5, "rank": 4, "decay_floor": -0.03}],
    ids=str,
)
def test_equals_the_equations_of_flas_layer(keys: dict[str, Any]) -> None:
    naive = fla_naive("ops/gla/naive.py").naive_recurrent_gla
    learner, config = make(**keys), GLA.Config(**keys)
    x, groups = torch.randn(2, 9, WIDTH, dtype=torch.float64), learner.groups
    with torch.no_grad():
        mixed, gate, low = learner.project(x).split(learner.features, -1)
        q, k, v = mixed.split(learner.mixed, -1)
        f = F.logsigmoid(learner.decay(low)) / 16
        if config.decay_floor is not None:
            f = f.clamp_min(config.decay_floor)
        q = q.unflatten(-1, (config.heads, -1))
        k, f, v = (part.unflatten(-1, (groups, -1)).repeat_interleave(config.heads // groups, 2) for part in (k, f, v))
        with wide():
            o, _ = naive(q, k, v, f)
        o = F.rms_norm(o, (learner.value,), learner.norm, config.norm_eps)
        expected = learner.out(o.flatten(2) * F.silu(gate))
        torch.testing.assert_close(learner(x, None, Pass.over(x))[0], expected, rtol=1e-8, atol=1e-9)


def test_is_the_equation_of_its_docstring_from_any_state() -> None:
    learner = make(heads=1, key_size=3, value_size=4, conv=3, conv_bias=True, gate=False, temperature=2.0)
    x = torch.randn(1, 6, WIDTH, dtype=torch.float64)
    state = GLAState(*(torch.randn_like(leaf) for leaf in learner.init_state(1)))
    y, after = learner(x, state, Pass.over(x))
    mixed, low = learner.project(x).split([10, 16], -1)
    past, S = torch.cat([state.conv, mixed], 1), state.memory[0, 0]
    assert learner.conv1d is not None
    for t in range(6):
        taps = (learner.conv1d.weight[:, 0].T * past[0, t : t + 3]).sum(0) + learner.conv1d.bias
        q, k, v = F.silu(taps).split([3, 3, 4])
        S = learner.decay(low[0, t]).sigmoid().sqrt()[:, None] * S + torch.outer(k, v)
        o = S.T @ q / 3**0.5
        torch.testing.assert_close(y[0, t], learner.out(F.rms_norm(o, (4,), learner.norm, 1e-5)))
    torch.testing.assert_close(after.memory[0, 0], S)


def test_a_higher_temperature_forgets_less() -> None:
    decays = []
    for temperature in (1.0, 16.0):
        trace, x = Trace(), torch.randn(1, 20, WIDTH, dtype=torch.float64)
        make(heads=2, temperature=temperature)(x, None, Pass.over(x, trace=trace))
        decays.append(next(record.value for record in trace.records if record.name == "decay"))
    assert decays[0].mean() < 0.7 < 0.9 < decays[1].mean() and decays[1].max() < 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"heads": 5}, "not divisible by heads 5"), ({"heads": 4, "kv_heads": 3}, "not divisible by kv_heads 3")],
    ids=str,
)
def test_bad_settings_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**keys)

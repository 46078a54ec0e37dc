"""HGRN2: its equation from any state, and fla's naive recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.layers.hgrn2 import HGRN2
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace
from tests.layers.mixers import wide
from tests.peers import fla_naive

WIDTH = 12
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def make(**keys: Any) -> HGRN2:
    torch.manual_seed(0)
    learner = HGRN2(HGRN2.Config(**keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


@pytest.mark.parametrize("bound", [0.0, 0.6])
def test_equals_the_equations_of_flas_layer(bound: float) -> None:
    naive = fla_naive("ops/gla/naive.py").naive_recurrent_gla
    learner = make(heads=3, key_size=5, value_size=4, lower_bound=bound)
    x = torch.randn(2, 19, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        q, z, i = (part.unflatten(-1, (3, -1)) for part in learner.project(x).split(learner.features, -1))
        g = F.logsigmoid(z)
        if learner.bound is not None:
            lowest = learner.bound.sigmoid().view(3, 5)
            g = torch.logaddexp(lowest.log(), torch.log1p(-lowest) + g)
        with wide():
            o, _ = naive(F.silu(q), 1 - g.exp(), i, g)
        expected = learner.out(F.rms_norm(o.flatten(2), (12,), learner.norm, 1e-5))
        torch.testing.assert_close(learner(x, None, Pass.over(x))[0], expected, **CLOSE)


def test_is_the_equation_of_its_docstring_from_any_state() -> None:
    learner = make(heads=1, key_size=3, value_size=4, lower_bound=0.25)
    x, state = torch.randn(1, 6, WIDTH, dtype=torch.float64), torch.randn(1, 1, 3, 4, dtype=torch.float64)
    y, after = learner(x, state, Pass.over(x))
    assert learner.bound is not None
    beta, S = learner.bound.sigmoid(), state[0, 0]
    for t in range(6):
        q, z, i = learner.project(x[0, t]).split([3, 3, 4])
        f = beta + (1 - beta) * z.sigmoid()
        S = f[:, None] * S + torch.outer(1 - f, i)
        o = S.T @ F.silu(q) / 3**0.5
        torch.testing.assert_close(y[0, t], learner.out(F.rms_norm(o, (4,), learner.norm, 1e-5)), **CLOSE)
    torch.testing.assert_close(after[0, 0], S, **CLOSE)


def test_no_gate_is_below_its_bound() -> None:
    trace, x = Trace(), 50 * torch.randn(1, 20, WIDTH, dtype=torch.float64)
    learner = HGRN2(HGRN2.Config(heads=2, lower_bound=0.9), WIDTH).double()
    learner(x, None, Pass.over(x, trace=trace))
    decay = trace.records[0].value
    assert 0.9 - 1e-12 <= decay.min() < 0.901


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match="not divisible by heads 5"):
        make(heads=5)

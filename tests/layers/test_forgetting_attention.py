"""Forgetting attention: fla's naive form, its equation from any state, and what its gates do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.layers.forgetting_attention import ForgettingAttention, ForgettingAttentionState
from synthe_core.layers.learner import Pass
from tests.layers.mixers import wide
from tests.peers import fla_naive

WIDTH = 12
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def make(**keys: Any) -> ForgettingAttention:
    torch.manual_seed(0)
    learner = ForgettingAttention(ForgettingAttention.Config(**keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


def parts(learner: ForgettingAttention, x: Tensor) -> tuple[Tensor, ...]:
    """q, k, v by heads, the output gate, and log f."""
    q, k, v, gate, forget = learner.project(x).split(learner.features, -1)
    q, k, v = (part.unflatten(-1, (-1, learner.size)) for part in (q, k, v))
    q, k = (F.rms_norm(h, (learner.size,), w, 1e-6) for h, w in ((q, learner.q_norm), (k, learner.k_norm)))
    return q, k, v, gate, F.logsigmoid(forget + learner.forget_bias)


@pytest.mark.parametrize("keys", [{"heads": 3}, {"heads": 4, "kv_heads": 2, "window": 6, "gate": True}], ids=str)
def test_equals_the_equations_of_flas_layer(keys: dict[str, Any]) -> None:
    naive = fla_naive("ops/forgetting_attn/naive.py").naive_forgetting_attn
    learner, x = make(**keys), torch.randn(2, 31, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        q, k, v, gate, log_forget = parts(learner, x)
        with wide():
            o = naive(q, k, v, log_forget, window_size=keys.get("window")).flatten(2)
        expected = learner.out(o * gate.sigmoid() if keys.get("gate") else o)
        torch.testing.assert_close(learner(x, None, Pass.over(x))[0], expected, **CLOSE)


def test_is_the_equation_of_its_docstring_from_any_state() -> None:
    learner, x = make(heads=1, head_size=4, window=5), torch.randn(1, 6, WIDTH, dtype=torch.float64)
    past = [torch.randn(1, 3, 1, 4, dtype=torch.float64) for _ in range(2)]
    forgotten = torch.tensor([-0.7, -0.2, 0.0], dtype=torch.float64).view(1, 3, 1)
    state = ForgettingAttentionState(past[0], past[1], forgotten, torch.tensor([3.0], dtype=torch.float64))
    y, after = learner(x, state, Pass.over(x))
    q, k, v, _, log_forget = (part[0] for part in parts(learner, x))
    keys, values = torch.cat([past[0][0], k])[:, 0], torch.cat([past[1][0], v])[:, 0]
    steps = torch.cat([torch.tensor([0.0, 0.5, 0.2], dtype=torch.float64).neg(), log_forget[:, 0]])
    for t in range(6):
        seen = range(max(0, 3 + t - 4), 3 + t + 1)
        scores = torch.stack([q[t, 0] @ keys[s] / 2 + steps[s + 1 : 3 + t + 1].sum() for s in seen])
        o = scores.softmax(0) @ values[seen.start : seen.stop]
        torch.testing.assert_close(y[0, t], learner.out(o), **CLOSE)
    torch.testing.assert_close(after.keys[0, :, 0], keys[-5:], **CLOSE)
    left = torch.stack([steps[s + 1 :].sum() for s in range(4, 9)])
    torch.testing.assert_close(after.forgotten[0, :, 0], left, **CLOSE)


def test_gates_begin_at_the_timescales() -> None:
    learner = ForgettingAttention(ForgettingAttention.Config(heads=3, timescales=(4.0, 64.0)), WIDTH)
    expected = -1 / torch.tensor([4.0, 16.0, 64.0])
    torch.testing.assert_close(F.logsigmoid(learner.forget_bias.detach()), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"heads": 5}, "not divisible by heads 5"),
        ({"heads": 4, "kv_heads": 3}, "not divisible by kv_heads 3"),
        ({"heads": 2, "window": 1}, "window must be at least 2"),
        ({"heads": 2, "timescales": (8, 4)}, "timescales must rise"),
    ],
    ids=str,
)
def test_bad_settings_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**keys)

"""The kernels of flash-linear-attention, called as the project calls them, against the references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.generalized_delta_rule import generalized_delta_rule
from synthe_core.ops.kda import kda
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.linear_scan import linear_scan
from synthe_core.ops.mlstm import EMPTY_SCALE, mlstm
from tests.gpu.interpreter.comparison import assert_equal, draws, outcome

pytest.importorskip("fla")

FEW = 13  # tokens of the recurrent kernels, which compute in float32
SMALL, MORE = (1, 33, 2, 16, 16), [(2, 17, 2, 16, 24), (2, 70, 1, 5, 7), (1, 130, 1, 32, 16)]


def memory_rule(sizes, started=True, decay=True):
    """q, k, v, beta, log_decay and state of the delta rule and linear attention."""
    batch, time, heads, key, value = sizes
    normal, uniform = draws(0, torch.float32)
    unit = lambda *shape: F.normalize(normal(*shape), dim=-1)  # noqa: E731
    beta, log_decay = uniform(batch, time, heads), -uniform(batch, time, heads)
    beta[:, ::4], log_decay[:, ::4] = 0, 0  # padding
    return {
        "q": unit(batch, time, heads, key),
        "k": unit(batch, time, heads, key),
        "v": normal(batch, time, heads, value),
        "beta": beta,
        "log_decay": log_decay if decay else None,
        "state": normal(batch, heads, key, value) if started else None,
    }


def per_channel(sizes, started=True):
    """As `memory_rule`, with a decay for every key channel."""
    arguments = memory_rule(sizes, started)
    uniform = draws(1, torch.float32)[1]
    return arguments | {"log_decay": -0.3 * uniform(*arguments["k"].shape)}


def generalized(sizes, started=True):
    normal, uniform = draws(2, torch.float32)
    batch, time, heads, key, value = sizes
    a = F.normalize(normal(batch, time, heads, key), dim=-1)
    return {
        "q": 0.3 * normal(batch, time, heads, key),
        "k": 0.3 * normal(batch, time, heads, key),
        "v": normal(batch, time, heads, value),
        "a": a,
        "b": -a * uniform(batch, time, heads, 1),
        "log_decay": -0.3 * uniform(batch, time, heads, key),
        "state": normal(batch, heads, key, value) if started else None,
    }


def xlstm(sizes, started=True):
    normal, uniform = draws(3, torch.float32)
    batch, time, heads, key, value = sizes
    memory = normal(batch, heads, key, value + 1) if started else torch.zeros(batch, heads, key, value + 1)
    return {
        "q": 0.3 * normal(batch, time, heads, key),
        "k": 0.3 * normal(batch, time, heads, key),
        "v": normal(batch, time, heads, value),
        "log_input": 2 * normal(batch, time, heads),
        "log_forget": -uniform(batch, time, heads),
        "memory": memory,
        "scale": normal(batch, heads) if started else torch.full((batch, heads), EMPTY_SCALE),
    }


RULES = [
    (delta_rule, memory_rule),
    (linear_attention, memory_rule),
    (kda, per_channel),
    (generalized_delta_rule, generalized),
    (mlstm, xlstm),
]
rules = pytest.mark.parametrize(("op", "make"), RULES, ids=[op.name for op, _ in RULES])


@rules
def test_a_training_pass(op, make):
    check(op, make(SMALL))


def check(op, arguments):
    """The rounding to bfloat16 shows in every number; its kernels declare 2e-2."""
    constants = ("scale",) if op is mlstm else ()
    if op is not mlstm:
        assert_equal(op, "fla", arguments, 2e-2, constants)
        return
    # What is read may be divided by a small n·q, so single outputs are further off: compared by their norm.
    actual, expected = (outcome(fn, arguments, constants) for fn in (op.named("fla"), op.reference))
    for name, tensor in expected.items():
        assert (actual[name] - tensor).norm() <= 2e-2 * tensor.norm(), name


@pytest.mark.parametrize(("op", "make"), RULES[:-1], ids=[op.name for op, _ in RULES[:-1]])
def test_few_tokens_without_a_gradient_are_float32(op, make):
    arguments = make((2, FEW, 2, 16, 24))
    with torch.no_grad():
        for actual, expected in zip(op.named("fla")(**arguments), op.reference(**arguments), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", [delta_rule, linear_attention], ids=lambda op: op.name)
def test_no_decay_and_a_fresh_memory(op):
    assert_equal(op, "fla", memory_rule(SMALL, started=False, decay=False), 2e-2)


def test_linear_scan():
    normal, uniform = draws(0, torch.float32)
    decay = uniform(2, 33, 20)
    decay[:, ::5] = 0
    assert_equal(linear_scan, "fla", {"decay": decay, "value": normal(2, 33, 20), "state": normal(2, 20)}, 1e-4)


@pytest.mark.slow
@rules
@pytest.mark.parametrize("sizes", MORE, ids=str)
@pytest.mark.parametrize("started", [True, False], ids=["started", "fresh"])
def test_more_sizes(op, make, sizes, started):
    check(op, make(sizes, started))


@pytest.mark.slow
@pytest.mark.parametrize("strength", [5.0, 20.0, 88.0])
@pytest.mark.parametrize(("op", "make"), RULES[:4], ids=[op.name for op, _ in RULES[:4]])
def test_strong_decays_stay_finite(op, make, strength):
    """fla takes products of decays apart: what a chunk forgets must not overflow."""
    arguments = make((1, 70, 1, 16, 16))
    arguments["log_decay"] = -strength * torch.rand(arguments["log_decay"].shape)
    for name, tensor in outcome(op.named("fla"), arguments).items():
        assert tensor.isfinite().all(), name

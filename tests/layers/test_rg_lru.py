"""RG-LRU: equal to transformers' recurrent block with the same weights, and to its equation from any state."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.rg_lru import RGLRU, BoundedSqrt, RGLRUState
from synthe_core.layers.trace import Trace
from tests.layers.mixers import wide

WIDTH = 12
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "silu": "silu"}
PEERS = [
    {"heads": 4},
    {"heads": 3, "channels": 12, "conv": 2, "activation": "silu"},
    {"heads": 1, "activation": "gelu"},
]
each_peer = pytest.mark.parametrize("keys", PEERS, ids=str)


def make(**keys: Any) -> RGLRU:
    torch.manual_seed(0)
    learner = RGLRU(RGLRU.Config(**keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


def pair(keys: dict[str, Any]) -> tuple[RGLRU, Any]:
    models = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    config = models.RecurrentGemmaConfig(
        hidden_size=WIDTH,
        num_attention_heads=keys["heads"],
        lru_width=keys.get("channels"),
        conv1d_width=keys.get("conv", 4),
        hidden_activation=ACTIVATIONS[keys.get("activation", "gelu_tanh")],
        num_hidden_layers=1,
    )
    learner, block = make(**keys), models.RecurrentGemmaRecurrentBlock(config, 0).double().eval()
    block.rg_lru._rnn_scan = partial(block.rg_lru._rnn_scan, acc_dtype=torch.float64)
    block.load_state_dict({published(name): value for name, value in learner.state_dict().items()}, strict=True)
    return learner, block


def published(name: str) -> str:
    return f"rg_lru.{name}" if name.startswith(("input_gate", "recurrent_")) else name


@each_peer
@pytest.mark.parametrize("time", [1, 2, 70])
def test_equals_transformers_in_outputs_and_every_gradient(keys: dict[str, Any], time: int) -> None:
    learner, block = pair(keys)
    torch.manual_seed(2)
    x, slope = torch.randn(2, 2, time, WIDTH, dtype=torch.float64).unbind()
    given = x.clone().requires_grad_()
    y, _ = learner(given, None, Pass.over(x))
    (y * slope).sum().backward()
    theirs = x.clone().requires_grad_()
    with wide():
        expected = block(theirs, torch.arange(time)[None].expand(2, -1), None, use_cache=False)[0]
    (expected * slope).sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(given.grad, theirs.grad, rtol=1e-8, atol=1e-10)
    for name, parameter in learner.named_parameters():
        gradient = block.get_parameter(published(name)).grad
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@each_peer
def test_decodes_as_transformers_does(keys: dict[str, Any]) -> None:
    learner, block = pair(keys)
    x, state = torch.randn(2, 16, WIDTH, dtype=torch.float64), None
    with torch.no_grad():
        for start, end in [(0, 9), *((t, t + 1) for t in range(9, 16))]:
            positions = torch.arange(start, end)[None].expand(2, -1)
            with wide():
                expected = block(x[:, start:end], positions, None)[0]
            y, state = learner(x[:, start:end], state, Pass.over(x[:, start:end], start=torch.full((2,), start)))
            torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)


def test_is_the_equation_of_its_docstring_from_any_state() -> None:
    learner = make(heads=2, channels=6, conv=3)
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    state = RGLRUState(*(torch.randn_like(leaf) for leaf in learner.init_state(1)))
    y, after = learner(x, state, Pass.over(x, start=torch.tensor([4])))
    past, h = torch.cat([state.conv, learner.linear_x(x)], 1), state.scan[0]
    R, I = (torch.block_diag(*w.mT) for w in (learner.recurrent_gate_weight, learner.input_gate_weight))
    for t in range(5):
        u = learner.conv_1d.bias + sum(learner.conv_1d.weight[:, 0, j] * past[0, t + j] for j in range(3))
        opened = torch.sigmoid(R @ u + learner.recurrent_gate_bias.flatten())
        a = torch.exp(-8 * F.softplus(learner.recurrent_param) * opened)
        h = a * h + (1 - a * a).sqrt() * torch.sigmoid(I @ u + learner.input_gate_bias.flatten()) * u
        gate = F.gelu(learner.linear_y(x[0, t]), approximate="tanh")
        torch.testing.assert_close(y[0, t], learner.linear_out(h * gate))
    torch.testing.assert_close(after.scan[0], h)


def test_a_sequence_begins_without_the_state_of_another() -> None:
    learner, x = make(heads=2), torch.randn(1, 4, WIDTH, dtype=torch.float64)
    fresh = learner.init_state(1)
    left_over = fresh._replace(scan=torch.full_like(fresh.scan, 9.0))
    torch.testing.assert_close(learner(x, left_over, Pass.over(x))[0], learner(x, None, Pass.over(x))[0])


def test_initial_decays_lie_in_their_range() -> None:
    learner = RGLRU(RGLRU.Config(heads=8), 4096)
    decay = torch.exp(-8 * F.softplus(learner.recurrent_param))
    assert 0.9 <= decay.min() < 0.901 and 0.998 < decay.max() <= 0.9991
    trace, x = Trace(), torch.randn(1, 5, WIDTH)
    RGLRU(RGLRU.Config(heads=2), WIDTH)(x, None, Pass.over(x, trace=trace))
    shown = {record.name: record.value for record in trace.records}
    assert shown["decay"][:, 0].max() == 0 < shown["decay"][:, 1:].min() and shown["decay"].max() < 1


def test_the_slope_of_the_square_root_is_bounded() -> None:
    x = torch.tensor([0.0, 1e-12, 0.25], requires_grad=True)
    BoundedSqrt.apply(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([1000.0, 1000.0, 1.0]))


def test_heads_that_do_not_divide_the_channels_are_named() -> None:
    with pytest.raises(InputError, match="12 channels are not divisible by heads 5"):
        make(heads=5)

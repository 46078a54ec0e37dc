"""Where no size may be read from a tensor, as on CUDA, passes take the largest sizes and give equal numbers."""

from __future__ import annotations

import pytest
import torch

from synthe_core import state as states
from synthe_core.layers import build, parse
from synthe_core.layers.learner import Pass
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops import expert_mlp, frames
from synthe_core.ops.dispatch import Call
from synthe_core.ops.frames import Ticks
from synthe_core.ops.slot_memory import chunked
from synthe_core.ops.span_memory import framed

LEARNERS = {
    "slots": {"slots": 12, "heads": 2, "key_size": 4, "reads": 3, "writes": 2, "chunk": 7, "match": 0.3},
    "kalman": {"every": 3},
    "test_time": {"heads": 2, "span": 4},
    "tiers": {},
    "multiscale_memory": {
        "tiers": [
            {"every": 1, "rule": "momentum"},
            {"every": 3, "size": 8, "rule": {"type": "delta", "heads": 2}},
            {"every": 6, "size": 5, "rule": "kalman"},
        ]
    },
}


@pytest.fixture
def unread(monkeypatch):
    def apply():
        for module in (frames, chunked, framed, expert_mlp):
            monkeypatch.setattr(module, "may_read_sizes", lambda x: False)

    return apply


@pytest.mark.parametrize("name", LEARNERS)
def test_outputs_states_and_gradients_are_the_same(name, unread):
    def run():
        torch.manual_seed(0)
        settings = {key: value for key, value in LEARNERS[name].items()}
        learner = build(parse({"type": name, **settings}), 16).double()
        x, state, outputs = torch.randn(2, 15, 16, dtype=torch.float64), None, []
        position = torch.tensor([0, 2])  # rows stand at different places of their spans
        for first, last in ((0, 7), (7, 8), (8, 9), (9, 15)):
            y, state = learner(x[:, first:last], state, Pass.over(x[:, first:last], None, position + first))
            outputs.append(y)
        y = torch.cat(outputs, 1)
        y.square().sum().backward()
        grads = [p.grad for p in learner.parameters() if p.grad is not None]
        return [y.detach(), *(leaf.detach() for _, leaf in states.named_leaves(state)), *grads]

    read = run()
    unread()
    for a, b in zip(read, run(), strict=True):
        assert torch.allclose(a, b, atol=1e-10), (a - b).abs().max()


@pytest.mark.parametrize("time,start", [(1, 0), (9, 0), (9, 4), (12, 3)])
def test_ticks_of_a_known_start(time, start):
    positions = torch.arange(start, start + time).expand(2, -1)
    mask = torch.ones(2, time, dtype=torch.bool)
    for real in (None, mask):
        a, b = Ticks.of(3, positions, real), Ticks.of(3, positions, real, start)
        if len(a.columns) or time > 1:
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_model_from_its_beginning_knows_its_positions():
    torch.manual_seed(0)
    spec = {"width": 16, "blocks": 1, "block": [{"type": "kalman", "every": 3}, {"type": "tiers"}], "tie": True}
    model = LanguageModel(ModelSpec.model_validate(spec), 31)
    tokens = torch.randint(31, (2, 10))
    known, state = model(tokens)
    unknown, after = model(tokens, model.init_state(2))
    assert torch.allclose(known, unknown, atol=1e-6)
    pairs = zip(states.named_leaves(state), states.named_leaves(after), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for (_, a), (_, b) in pairs)


@pytest.mark.parametrize("gated,activation", [(True, "silu"), (False, "relu2")])
def test_gathered_experts_are_the_reference(gated, activation, unread):
    unread()
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 8, dtype=torch.float64), torch.rand(2, 3, 2, dtype=torch.float64)
    chosen = torch.randint(5, (2, 3, 2))
    first = torch.randn(5, 12 if gated else 6, 8, dtype=torch.float64)
    arguments = (x, chosen, weight, first, torch.randn(5, 8, 6, dtype=torch.float64), activation, gated)
    expected = expert_mlp.expert_mlp.reference(*arguments)
    assert torch.allclose(expert_mlp.gathered(*arguments), expected, atol=1e-10)
    names = ("x", "chosen", "weight", "gate_up", "out")
    call = Call.of(dict(zip(names, arguments, strict=False)))
    assert expert_mlp.gathered.refusal(None, call) is None
    many = Call.of(dict(zip(names, arguments, strict=False)) | {"chosen": chosen.expand(40, -1, -1, -1)})
    assert "more than 64 visits" in expert_mlp.gathered.refusal(None, many)

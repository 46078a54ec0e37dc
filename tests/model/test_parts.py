"""A model without some of its parts is the smaller model that is left."""

from __future__ import annotations

import pytest
import torch

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.layers.learner import apply_buffer_updates
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.parts import parts, without_parts
from synthe_core.model.spec import ModelSpec

VOCAB, TIME, WIDTH = 31, 29, 16
MEMORY = {
    "type": "multiscale_memory",
    "tiers": [
        {"every": 1, "rule": "momentum"},
        {"every": 2, "size": 8, "rule": {"type": "test_time", "heads": 2}},
        {"every": 4, "size": 4, "rule": "kalman"},
    ],
}
PROBE = {"type": "attention", "heads": 2, "window": 9, "when": {"signal": "confidence", "below": 0.5}}
SPEC = ModelSpec.model_validate(
    {
        "width": WIDTH,
        "blocks": 3,
        "block": ["kalman", MEMORY, {"type": "mlp", "hidden": 16}, PROBE],
        "depth": {"min": 1, "target": 0.5, "hidden": 8},
        "confidence": {"hidden": 4},
    }
)
CASES = [
    ["multiscale_memory.tier3"],
    ["multiscale_memory.tier2", "multiscale_memory.tier3", "confidence"],
    ["multiscale_memory.tier2", "multiscale_memory.tier3", "attention", "depth", "confidence"],
    ["depth"],
    ["attention"],
    ["multiscale_memory", "confidence"],
    ["mlp", "depth"],
    ["multiscale_memory", "attention", "kalman", "depth", "confidence"],
]
each_case = pytest.mark.parametrize("without", CASES, ids=",".join)


def tokens(batch=3, time=TIME, seed=1):
    torch.manual_seed(seed)
    return torch.randint(0, VOCAB, (batch, time))


def model_of(spec=SPEC, recompute=False):
    torch.manual_seed(0)
    model = LanguageModel(spec, VOCAB, recompute).double()
    for seed in (5, 6):  # thresholds as they are after two steps
        apply_buffer_updates(model.loss(tokens(seed=seed), tokens(seed=seed))[0].buffer_updates)
    return model


def left(model, without):
    """The smaller model with the same weights."""
    smaller = LanguageModel(without_parts(model.spec, without), VOCAB).double()
    own, remaining = model.state_dict(), [i for i, entry in enumerate(model.spec.block) if entry.type not in without]

    def original(name):
        pieces = name.split(".")
        if pieces[0] == "blocks":
            pieces[3] = str(remaining[int(pieces[3])])
        return ".".join(pieces)

    smaller.load_state_dict({name: own[original(name)] for name in smaller.state_dict()})
    return smaller


@each_case
def test_it_computes_and_costs_what_the_smaller_model_does(without):
    model, text = model_of(), tokens()
    smaller = left(model, without)
    model.leave_out(without)
    with torch.no_grad():
        for batch in (text, text[:1]):
            torch.testing.assert_close(model(batch)[0], smaller(batch)[0], rtol=0, atol=0)
        lengths = torch.tensor([TIME, 11, 3])
        one, other = (each(text, lengths=lengths)[0] for each in (model, smaller))
        real = torch.arange(TIME) < lengths[:, None]
        torch.testing.assert_close(one[real], other[real], rtol=1e-12, atol=1e-13)
        row = text[:1]  # whose short passes have no padding
        one, other = (each.eval().loss(row, row)[0] for each in (model, smaller))
    executed = [TIME * each.flops(TIME) - float(loss.skipped) for each, loss in ((model, one), (smaller, other))]
    assert executed[0] == pytest.approx(executed[1], rel=1e-9)
    assert executed[0] < TIME * model.flops(TIME)
    assert one.auxiliary.keys() == other.auxiliary.keys()


@each_case
def test_what_is_left_out_has_no_gradient_and_all_else_has_the_smaller_model_s(without):
    model, text = model_of(), tokens()
    prefixes = tuple(prefix for name in without for prefix in parts(model.spec)[name].prefixes)
    model.leave_out(without)
    loss, _ = model.loss(text[:, :-1], text[:, 1:])
    loss.objective.backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert {name for name, _ in model.named_parameters() if name.startswith(prefixes)} <= silent
    smaller = left(model, without)
    loss, _ = smaller.loss(text[:, :-1], text[:, 1:])
    loss.objective.backward()
    gradients = [p.grad for p in smaller.parameters() if p.grad is not None]
    assert len(gradients) == len(list(model.named_parameters())) - len(silent)
    for mine, theirs in zip((p.grad for p in model.parameters() if p.grad is not None), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


@each_case
def test_text_in_pieces_is_the_whole_and_states_of_what_is_left_out_stay(without):
    model, text = model_of(), tokens()
    model.leave_out(without)
    with torch.no_grad():
        whole, _ = model(text)
        pieces, state = [], None
        for start, end in ((0, 1), (1, 13), *((t, t + 1) for t in range(13, TIME))):
            piece, state = model(text[:, start:end], state)
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-8, atol=1e-9)
        fresh = model.init_state(3)
        for before, after in zip(fresh.blocks, state.blocks, strict=True):
            for place, entry in enumerate(model.spec.block):
                pairs = [(before[place], after[place])] if entry.type in without else []
                if entry.type == "multiscale_memory":
                    names = [f"multiscale_memory.tier{k}" for k in (2, 3)]
                    slow = zip(names, before[place].slow, after[place].slow, strict=True)
                    pairs += [(old, new) for name, old, new in slow if name in without]
                for old, new in pairs:
                    states.map_leaves(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0) or a, old, new)


def test_what_has_joined_goes_on_from_the_state_that_it_was_left_with():
    """A text may be read in one stage and go on in the next: finite, and equal to itself in pieces."""
    model, text = model_of(), tokens()
    model.leave_out(["multiscale_memory.tier2", "multiscale_memory.tier3", "attention", "depth"])
    with torch.no_grad():
        _, state = model(text)
        model.leave_out([])
        whole, _ = model(text, state)
        pieces, after = [], state
        for t in range(TIME):
            piece, after = model(text[:, t : t + 1], after)
            pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-8, atol=1e-9)


def test_recomputing_activations_changes_no_gradient():
    text, gradients = tokens(), []
    for recompute in (False, True):
        model = model_of(recompute=recompute)
        model.leave_out(["multiscale_memory.tier3", "attention"])
        model.loss(text[:, :-1], text[:, 1:])[0].objective.backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_all_parts_are_named_and_an_unknown_one_is_an_error():
    names = [
        "kalman",
        "multiscale_memory",
        "multiscale_memory.tier2",
        "multiscale_memory.tier3",
        "mlp",
        "attention",
        "depth",
        "confidence",
    ]
    assert list(parts(SPEC)) == names
    model = model_of()
    with pytest.raises(InputError, match=r"unknown part of the model 'multiscale_memory\.teir3'") as error:
        model.leave_out(["multiscale_memory.teir3"])
    assert error.value.hint == "did you mean 'multiscale_memory.tier3'?"
    assert not model.without


def test_a_block_that_runs_again_leaves_out_what_it_left_out_before() -> None:
    kinds = [[{"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 8}], [{"type": "momentum"}, {"type": "mlp"}]]
    tokens = torch.randint(17, (2, 9), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = LanguageModel(ModelSpec(width=16, blocks=2, block=kinds), 17, recompute)
        torch.nn.init.normal_(model.head.weight)
        model.leave_out(["delta"])
        model.loss(tokens[:, :-1], tokens[:, 1:])[0].total.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)

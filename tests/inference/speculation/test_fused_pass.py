"""Several tokens in one pass have the numbers of one token a pass, to the bit, and so has the state after each."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from synthe_core import state as states
from synthe_core.inference.fused_decoder import FusedDecoder
from synthe_core.inference.speculation.fused_pass import FusedPass
from synthe_core.model.language_model import ModelState
from synthe_core.ops.fused_decode import unavailable
from tests.inference import test_fused_recurrent as recurrent
from tests.inference.test_fused_decoder import ATTENTIONS, RESIDUALS, model_of, model_of_residuals

pytestmark = pytest.mark.skipif(unavailable("cpu") is not None, reason=str(unavailable("cpu")))


def row(model: Any, length: int) -> ModelState:
    tokens = torch.randint(50, (1, length), generator=torch.Generator().manual_seed(length))
    return model.hidden(tokens)[1]


def one_by_one(decoder: FusedDecoder, tokens: list[int], state: ModelState) -> tuple[torch.Tensor, list[ModelState]]:
    hidden, after = [], []
    for token in tokens:
        h, state, _ = decoder.hidden(torch.tensor([[token]]), state)
        hidden.append(h[0])
        after.append(states.map_leaves(torch.clone, state))
    return torch.cat(hidden), after


def equal(ours: ModelState, theirs: ModelState) -> None:
    for (name, mine), (_, other) in zip(states.named_leaves(ours), states.named_leaves(theirs), strict=True):
        assert torch.equal(mine, other), name


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


MODELS = {f"attention, {name}": partial(model_of, attention) for name, attention in ATTENTIONS.items()} | {
    name: partial(recurrent.model_of, block) for name, block in recurrent.BLOCKS.items()
}
MODELS |= {f"residuals, {name}": partial(model_of_residuals, name, "layer") for name in RESIDUALS}


@pytest.mark.parametrize("name", MODELS)
def test_equals_single_tokens(name: str, threads: int) -> None:
    model = MODELS[name]()
    decoder = FusedDecoder(model)
    befores = [row(model, length) for length in (5, 12, 1, 70)]
    copies = [states.map_leaves(torch.clone, each) for each in befores]
    tokens = [[3, 4, 5, 6, 7, 8], [9], list(range(20)), [1, 2]]
    expected = [one_by_one(decoder, *each) for each in zip(tokens, befores, strict=True)]
    made = FusedPass(decoder, tokens, befores)
    assert torch.equal(made.hidden, torch.cat([hidden for hidden, _ in expected]))
    for index, (_, after) in enumerate(expected):
        for count in range(len(after), 0, -1):
            equal(made.state(index, count), after[count - 1])
        equal(befores[index], copies[index])


@pytest.mark.parametrize("name", ["kalman", "synthe", "hybrid"])
def test_signals_are_those_of_single_tokens(name: str, threads: int) -> None:
    model = recurrent.model_of(recurrent.BLOCKS[name])
    decoder = FusedDecoder(model)
    befores, tokens, expected = [row(model, 5), row(model, 9)], [[3, 4, 5], [6, 7]], []
    for before, each in zip(befores, tokens, strict=True):
        for token in each:
            _, before, signals = decoder.hidden(torch.tensor([[token]]), before)
            expected.append(signals)
    made = FusedPass(decoder, tokens, befores)
    assert made.signals.keys() == expected[0].keys()
    for signal, value in made.signals.items():
        assert torch.equal(value, torch.cat([each[signal][:, 0] for each in expected]))


@pytest.mark.parametrize("name", ["grouped", "window", "window of one"])
def test_what_is_cut_back_goes_on_as_if_it_had_never_been_longer(name: str) -> None:
    model = model_of(ATTENTIONS[name])
    decoder = FusedDecoder(model)
    generator = torch.Generator().manual_seed(0)
    state = plain = row(model, 7)
    for _ in range(40):
        count, accepted = torch.randint(1, 9, (2,), generator=generator).tolist()
        tokens = torch.randint(50, (count,), generator=generator).tolist()
        accepted = min(accepted, count)
        draft = FusedPass(decoder, [[49]], [state])  # a fork that is dropped
        draft.release()
        made = FusedPass(decoder, [tokens], [state])
        hidden, after = one_by_one(decoder, tokens[:accepted], plain)
        assert torch.equal(made.hidden[:accepted], hidden)
        state, plain = made.state(0, accepted), after[-1]
        equal(state, plain)


def test_a_window_is_not_copied_for_every_pass() -> None:
    model = model_of(ATTENTIONS["plain"])
    decoder = FusedDecoder(model)
    state = FusedPass(decoder, [[1]], [row(model, 30)]).state(0, 1)
    storage = state.blocks[0][0].keys.untyped_storage().data_ptr()
    for _ in range(8):
        made = FusedPass(decoder, [[1, 2, 3, 4]], [state])
        state = made.state(0, 2)
        assert state.blocks[0][0].keys.untyped_storage().data_ptr() == storage


def test_a_state_that_somebody_holds_is_not_changed() -> None:
    model = model_of(ATTENTIONS["grouped"])
    decoder = FusedDecoder(model)
    state = FusedPass(decoder, [[1, 2, 3]], [row(model, 30)]).state(0, 3)
    copy = states.map_leaves(torch.clone, state)
    for tokens in ([4, 5], [6], [7, 8, 9]):
        FusedPass(decoder, [tokens], [state]).state(0, 1)
        equal(state, copy)

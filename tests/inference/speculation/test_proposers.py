"""What is drafted: from the text, by another model, by the first blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.speculation.draft_length import FIRST_RATE, Acceptance, PassCosts, draft_lengths
from synthe_core.inference.speculation.model_drafts import DraftModelProposer, EarlyExitProposer
from synthe_core.inference.speculation.ngram import NgramIndex, NgramProposer
from synthe_core.inference.speculation.proposer import DraftRequest, Speculation
from synthe_core.inference.speculation.settings import SpeculationSettings, speculate
from synthe_core.model.language_model import LanguageModel
from tests.inference.speculation.conftest import PROMPTS, clock, request_of, run, tokens
from tests.inference.speculation.test_decoder import texts_of
from tests.inference.test_fused_decoder import adapter_of


def index_of(tokens: list[int]) -> NgramIndex:
    index = NgramIndex()
    index.extend(tokens)
    return index


def test_ngrams() -> None:
    assert index_of([1, 2, 3, 9, 1, 2]).continuation(3) == [3, 9, 1]
    assert index_of([1, 2, 3, 1, 2, 4, 1, 2]).continuation(1) == [4]  # the last occurrence
    assert index_of([5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2]).continuation(1) == [3]  # of the longest run
    assert index_of([1, 2, 3, 4]).continuation(2) == []
    assert index_of([7, 8, 7, 8]).continuation(5) == [7, 8, 7, 8, 7]  # a loop goes on
    assert index_of([1, 2, 3, 4, 5, 7, *range(10, 99), 9, 3, 4, 5, 8, 2, 3, 4, 5]).continuation(1) == [7]
    assert index_of([]).continuation(2) == index_of([1]).continuation(2) == []


def test_ngrams_follow_a_growing_text() -> None:
    proposer, output = NgramProposer(), list[int]()
    prompt = [1, 2, 3, 4, 5]

    def draft() -> list[int]:
        request = DraftRequest("text", prompt, output, None, 0, None, 2)  # type: ignore[arg-type]
        return proposer.propose([request])[0]

    assert draft() == []
    output += [2, 3]
    assert draft() == [4, 5]
    output += [4, 9, 2, 3]
    assert draft() == [4, 9]
    proposer.forget("text")
    assert draft() == [4, 9]


def test_the_length_of_a_match() -> None:
    text = list(range(10, 30))
    lengths = {count: index_of([*text, *text[:count]]).match().length for count in (0, 1, 2, 5, 8, 12)}
    assert lengths == {0: 0, 1: 0, 2: 2, 5: 5, 8: 8, 12: 8}
    request = DraftRequest("text", [1, 2, 3, 4], [1, 2, 3], None, 0, None, 2)  # type: ignore[arg-type]
    assert NgramProposer().matched(request) == 3


@pytest.mark.parametrize("kind", ["draft", "early-exit"])
@pytest.mark.parametrize("together", [1, 3])
def test_the_same_text(model: LoadedModel, fused: LoadedModel, kind: str, together: int) -> None:
    if kind == "early-exit" and model.has_router:
        pytest.skip("refused, see below")
    requests = [request_of(prompt, 60) for prompt in PROMPTS[:together]]
    expected = texts_of(model, requests)
    proposer = DraftModelProposer(fused, model) if kind == "draft" else EarlyExitProposer(model, 1)
    model.speculation = Speculation(proposer, clock=clock(), always=True, most_tokens=4)
    for _ in range(2):
        for request, outputs in zip(requests, run(model, requests), strict=True):
            assert tokens(outputs) == expected[request.prompt_token_ids]
            assert outputs[-1].num_drafted_tokens > 0  # type: ignore[union-attr]
    assert not model.speculation.failure


@pytest.mark.parametrize("kind", ["draft", "early-exit"])
def test_a_model_that_drafts_for_itself_is_always_right(model: LoadedModel, kind: str) -> None:
    """All its blocks, or the model once more: every drafted token is accepted, whatever was before it."""
    if kind == "early-exit" and model.has_router:
        pytest.skip("refused, see below")
    requests = [request_of(prompt, 60) for prompt in PROMPTS]
    if kind == "draft":
        proposer: Any = DraftModelProposer(model.with_network(model.model), model)
    else:
        proposer = EarlyExitProposer(model, 1)
        proposer.blocks = 2
        proposer._network = model.model
        proposer._first = model.with_network(model.model)
    model.speculation = Speculation(proposer, clock=clock(), always=True, most_tokens=5)
    for outputs in run(model, requests):
        end: Any = outputs[-1]
        assert 40 < end.num_drafted_tokens == end.num_accepted_tokens


def test_early_exit_with_an_adapter_drafts_with_it(fused: LoadedModel) -> None:
    adapter = adapter_of(fused.model, 2, 0.5)
    fused.adapters["own"] = adapter
    engine = Engine([fused], max_state_bytes=1 << 30, cache_bytes=0)
    requests = [request_of(PROMPTS[0], 30), request_of(PROMPTS[0], 30)]
    requests[1] = replace(requests[1], model="model:own")
    expected = [tokens(run(fused, [each], engine)[0]) for each in requests]
    assert expected[0] != expected[1]
    proposer: Any = EarlyExitProposer(fused, 1)
    proposer.blocks, proposer._network = 2, fused.model
    proposer._first, proposer._decoder = fused.with_network(fused.model), None
    fused.speculation = Speculation(proposer, clock=clock(), always=True, most_tokens=5)
    outputs = run(fused, requests, Engine([fused], max_state_bytes=1 << 30, cache_bytes=0))
    assert [tokens(each) for each in outputs] == expected
    for each in outputs:
        end: Any = each[-1]
        assert end.num_drafted_tokens == end.num_accepted_tokens > 10


def test_what_cannot_be(model: LoadedModel) -> None:
    other = LoadedModel("other", LanguageModel(model.model.spec, 300), ByteTokenizer())
    with pytest.raises(InputError, match="other has another tokenizer than model: 300 tokens of bytes and 257"):
        DraftModelProposer(other, model)
    if model.has_router:
        with pytest.raises(InputError, match="decides how many blocks"):
            EarlyExitProposer(model)
        return
    with pytest.raises(InputError, match="the model has 2 blocks"):
        EarlyExitProposer(model, 2)
    assert EarlyExitProposer(model).name == "early-exit=1"


def test_a_draft_model_that_reads_less_drafts_as_far_as_it_reads(fused: LoadedModel) -> None:
    requests = [request_of(PROMPTS[0], 60)]
    expected = texts_of(fused, requests)
    short = fused.with_network(fused.model)
    short.max_length = 40
    fused.speculation = Speculation(DraftModelProposer(short, fused), clock=clock(), always=True)
    outputs = run(fused, requests)[0]
    assert tokens(outputs) == expected[requests[0].prompt_token_ids] and not fused.speculation.failure
    assert 0 < outputs[-1].num_drafted_tokens < 30  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ngrams", "unknown way to speculate 'ngrams'"),
        ("ngram=3", "ngram has no setting"),
        ("draft", "no model named"),
        ("draft=", "no model named"),
        ("early-exit=", "not a number of blocks"),
        ("early-exit=0", "not a number of blocks"),
        ("early-exit=x", "not a number of blocks"),
    ],
)
def test_settings_that_say_nothing(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SpeculationSettings.parse(text)


def test_settings(fused: LoadedModel) -> None:
    for text, name in (("ngram", "ngram"), ("early_exit", "early-exit=1"), ("draft=small=1", "draft=small=1")):
        settings = SpeculationSettings.parse(text)

        def load(named: str) -> LoadedModel:
            other = fused.with_network(fused.model)
            other.name = named
            return other

        assert isinstance(speculate(fused, settings, load), str)
        assert fused.speculation is not None and fused.speculation.summary == name


def costs_of(known: dict[int, float]) -> PassCosts:
    costs = PassCosts()
    for size, seconds in known.items():
        costs.record(size, seconds)
    return costs


def test_costs_between_and_beyond_sizes() -> None:
    costs = costs_of({2: 2.0, 4: 3.0})
    assert [costs.estimate(n) for n in (1, 2, 3, 4)] == [1.0, 2.0, 2.5, 3.0]
    assert costs.estimate(5) == pytest.approx(3.0 * 1.32 / 1.24)
    assert PassCosts().estimate(3) == 0.0
    for seconds in (9.0, 8.0, 5.0, 6.0, 7.0, 8.0):
        costs.record(2, seconds)
    assert costs.estimate(2) == 5.0  # the least of the last five


def test_lengths_follow_costs_and_rates() -> None:
    flat, steep = costs_of({1: 1.0, 17: 1.0, 40: 1.0}), costs_of({1: 1.0, 17: 17.0, 40: 40.0})
    assert draft_lengths([[0.9] * 16], [16], flat) == [16]
    assert draft_lengths([[0.9] * 16], [16], steep) == [0]
    assert draft_lengths([[0.9] * 16], [16], PassCosts()) == [0]
    mild = costs_of({1: 1.0, 9: 3.0, 17: 5.0})
    high, low = draft_lengths([[0.95] * 16], [16], mild)[0], draft_lengths([[0.4] * 16], [16], mild)[0]
    assert high > 4 and low <= 1
    assert draft_lengths([[0.95] * 16], [16], mild, seconds_per_draft=0.8) == [0]
    both = draft_lengths([[0.95] * 16, [0.1] * 16], [16, 16], mild)
    assert both[0] > both[1] == 0
    assert draft_lengths([[0.9] * 16] * 2, [16, 3], flat) == [16, 3]


def test_a_step_in_the_costs_is_jumped() -> None:
    """A pass of two tokens costs as much as one of eight: one more token does not pay, seven do."""
    assert draft_lengths([[0.9] * 16], [16], costs_of({1: 1.0, 2: 2.0, 8: 2.0, 17: 17.0})) == [7]


def test_acceptance() -> None:
    known = Acceptance()
    for _ in range(40):
        known.record(4, 4)
    assert known.rates(1)[0] > 0.97
    for _ in range(40):
        known.record(4, 0)
    assert known.rates(1)[0] < 0.3
    known = Acceptance()
    for _ in range(3):
        known.record(0, 0)
    assert (known.idle, known.retry) == (3, 16)
    known.record(2, 0)
    assert (known.idle, known.retry) == (0, 32)
    known.record(0, 0)
    known.record(2, 1)
    assert known.retry == 16


def test_longer_matches_have_rates_of_their_own() -> None:
    known = Acceptance()
    for _ in range(30):
        known.record(3, 1, matched=2)  # the first token is right, the second is wrong
    first, second, third = known.rates(3, matched=2)
    assert first > 0.95 and second < 0.1 and third == FIRST_RATE
    assert known.rates(2, matched=3) == [second, third] and known.rates(1) == [FIRST_RATE]
    known.record(9, 9, matched=7)
    assert len(set(known.rates(20, matched=8))) == 1  # all longer ones have one rate


def test_lengths_follow_the_rate_of_each_place() -> None:
    flat = costs_of({1: 1.0, 17: 3.0})
    assert draft_lengths([[0.9, 0.9, 0.01, 0.9]], [4], flat) == [2]
    assert draft_lengths([[0.9, 0.9, 0.9], [0.1, 0.99, 0.99]], [3, 3], costs_of({2: 1.0, 8: 2.5})) == [3, 0]

"""Where a text ends: minimum lengths, stop tokens, grammars; and the streams of seeds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Finished
from synthe_core.inference.random_generator import WORDS, random_generator
from synthe_core.inference.request import ContextLengthExceeded, Grammar
from synthe_core.inference.sampling_params import SamplingParams
from tests.inference.conftest import output_ids, text

END = 256
LIKES_TO_END = SamplingParams(temperature=0, logit_bias={END: 100.0})


def finished(events: Any) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_no_end_before_the_minimum(engine: AsyncEngine, ask: Any, count: int) -> None:
    request = ask(count=9, sampling=LIKES_TO_END, ignore_eos=False, min_tokens=count)
    events = list(engine.submit(request))
    ids = output_ids(events)
    assert len(ids) == count + 1
    assert ids[-1] == END and END not in ids[:-1]
    assert finished(events).reason == "stop"


def test_a_minimum_changes_nothing_for_others(engine: AsyncEngine, ask: Any) -> None:
    alone = output_ids(engine.submit(ask(count=20)))
    beside = [engine.submit(ask(count=20, min_tokens=each, ignore_eos=False)) for each in (3, 20)]
    assert output_ids(engine.submit(ask(count=20))) == alone
    for handle in beside:
        assert isinstance(list(handle)[-1], Finished)


def test_stop_tokens_end_without_text(engine: AsyncEngine, ask: Any) -> None:
    sampling = SamplingParams(temperature=0, logit_bias={113: 100.0})
    events = list(engine.submit(ask(count=6, sampling=sampling, stop_token_ids=(113,))))
    assert (output_ids(events), text(events), finished(events).reason) == ([113], "", "stop")
    events = list(engine.submit(ask(count=6, sampling=sampling, stop_token_ids=(113,), min_tokens=3)))
    assert len(output_ids(events)) == 4 and output_ids(events)[-1] == 113
    assert 113 not in output_ids(events)[:-1]


def test_stop_strings_are_not_looked_for_before_the_minimum(engine: AsyncEngine, ask: Any) -> None:
    sampling = SamplingParams(temperature=0, logit_bias={113: 100.0})
    events = list(engine.submit(ask(count=6, sampling=sampling, stop=("q",), min_tokens=3)))
    assert text(events) == "qqq"
    assert finished(events).reason == "stop"


@pytest.mark.parametrize("field", [{"stop_token_ids": (999,)}, {"stop_token_ids": (-1,)}, {"min_tokens": 13}])
def test_impossible_ends_are_refused(engine: AsyncEngine, ask: Any, field: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(field))):
        engine.submit(ask(count=12, **field))


@pytest.mark.parametrize(
    "kind,source,pattern",
    [
        ("regex", r"[0-9]{3}-[ab]+", r"[0-9]{3}-[ab]+"),
        ("choice", '["yes", "no \\"maybe\\"", "日本"]', 'yes|no "maybe"|日本'),
        ("grammar", 'start: "x" NUMBER\nNUMBER: /[0-9]{2}/', r"x[0-9]{2}"),
        ("grammar", 'root ::= "x" number\nnumber ::= [0-9] [0-9]', r"x[0-9]{2}"),
    ],
)
def test_text_of_a_grammar(engine: AsyncEngine, ask: Any, kind: Any, source: str, pattern: str) -> None:
    sampling = SamplingParams(temperature=1.0)
    for seed in range(3):
        request = ask(
            count=60, sampling=sampling, seed=seed, grammar=Grammar(kind, source), ignore_eos=False, min_tokens=2
        )
        events = list(engine.submit(request))
        assert finished(events).reason in ("stop", "length"), finished(events)
        if finished(events).reason == "stop":
            assert re.fullmatch(pattern, text(events))


@pytest.mark.parametrize(
    "grammar,named",
    [
        (Grammar("regex", "(["), "regular expression"),
        (Grammar("grammar", "start: nothing"), "grammar"),
        (Grammar("grammar", "root ::= ("), "grammar"),
    ],
)
def test_invalid_grammars_are_refused(engine: AsyncEngine, ask: Any, grammar: Grammar, named: str) -> None:
    with pytest.raises(InputError, match=f"the {named} is invalid"):
        engine.submit(ask(grammar=grammar))


def test_what_is_too_long_has_a_code(engine: AsyncEngine, ask: Any, window: LoadedModel, monkeypatch: Any) -> None:
    monkeypatch.setattr(window, "max_length", 20)
    with pytest.raises(ContextLengthExceeded):
        engine.submit(ask(model="window", count=20))
    first = ask(model="window", count=8, session_id="long")
    assert finished(list(engine.submit(first))).reason == "length"
    events = list(engine.submit(first))
    assert (finished(events).reason, finished(events).code) == ("refused", "context_length_exceeded")


SEEDS = [0, 1, 5, 2**32, 2**32 + 1, 2**62, 2**62 + 1, 2**63 - 1, -1, -2, -5, -(2**32), -(2**62), -(2**63)]


def test_seeds_of_64_bits_differ() -> None:
    drawn = {tuple(torch.rand(4, generator=random_generator(seed)).tolist()) for seed in SEEDS}
    assert len(drawn) == len(SEEDS)
    again = torch.rand(4, generator=random_generator(-5)).tolist()
    assert tuple(again) in drawn


def test_small_seeds_are_torchs_own() -> None:
    """And the words of the state are where they are replaced."""
    generator = random_generator(7)
    words = np.random.RandomState(7).get_state(legacy=False)["state"]["key"]
    assert generator.get_state().view(torch.int64)[WORDS].tolist() == words.tolist()
    assert torch.equal(torch.rand(9, generator=generator), torch.rand(9, generator=torch.Generator().manual_seed(7)))


def test_a_seed_and_that_plus_two_to_the_32_generate_different_texts(engine: AsyncEngine, ask: Any) -> None:
    sampling = SamplingParams(temperature=1.0)
    texts = [tuple(output_ids(engine.submit(ask(count=30, sampling=sampling, seed=seed)))) for seed in SEEDS]
    assert len(set(texts)) == len(SEEDS)

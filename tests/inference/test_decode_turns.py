"""Clients with few rows get passes of their own where a client with many makes passes long; no answer changes by it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from synthe_core.inference import decode_turns
from synthe_core.inference.decode_turns import GAP, PROBE, DecodeTurns, light_sequences
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Finished, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams


def rows(**clients: int) -> list[Any]:
    """Sequences of clients, so many each."""
    return [
        SimpleNamespace(request=SimpleNamespace(client=name)) for name, count in clients.items() for _ in range(count)
    ]


@pytest.mark.parametrize(
    "clients,light",
    [
        ({"a": 64}, 0),
        ({f"c{i}": 1 for i in range(64)}, 0),  # nobody has more than others
        ({"many": 64, "one": 1}, 1),
        ({"many": 31, "more": 31, "one": 1}, 1),
        ({"many": 60, "a": 1, "b": 1, "c": 2}, 4),
        ({"a": 16, "b": 16, "c": 9}, 0),
        ({"many": 33, **{f"c{i}": 1 for i in range(31)}}, 31),
        ({"a": 2, "b": 1}, 0),
    ],
)
def test_light_clients_have_half_of_the_mean_or_less(clients: dict[str, int], light: int) -> None:
    assert len(light_sequences(rows(**clients))) == light
    assert light_sequences([]) == []


def simulated(short: float, full: float, passes: int = 20_000, hiccup: int = 0) -> tuple[float, float]:
    """The mean time between a light client's tokens in short passes, and the part of the time that passes over all
    get, when passes take so long; every `hiccup`-th takes a hundred times as long."""
    turns, sequences = DecodeTurns(), rows(many=64, one=1)
    seconds = {True: 0.0, False: 0.0}
    for number in range(1, passes + 1):
        is_short = len(turns.next(sequences)) == 1
        duration = short if is_short else full
        seconds[is_short] += duration
        turns.record(duration * (100 if hiccup and number % hiccup == 0 else 1), is_short)
    return sum(seconds.values()) / passes / short, seconds[False] / sum(seconds.values())


@pytest.mark.parametrize("ratio", [1.8, 2.0, 2.45, 3.0, 5.0, 9.7, 20.0, 60.0])
def test_a_light_clients_gap_at_most_doubles(ratio: float) -> None:
    for hiccup in (0, 11):
        gap, share = simulated(1.0, ratio, hiccup=hiccup)
        assert gap < 2 and share >= 0.5, (ratio, gap, share)


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.3, GAP])
def test_nothing_is_given_where_a_pass_over_all_is_as_fast(ratio: float) -> None:
    """But one pass in so many, which measures."""
    _, share = simulated(1.0, ratio)
    assert share > 1 - 1.5 / PROBE


def test_the_durations_of_before_do_not_count_for_ever() -> None:
    turns, sequences = DecodeTurns(), rows(many=64, one=1)
    for _ in range(50):  # a slow start: short passes seem as long
        turns.record(1.0, len(turns.next(sequences)) == 1)
    short = 0
    for _ in range(20 * PROBE):
        is_short = len(turns.next(sequences)) == 1
        short += is_short
        turns.record(0.1 if is_short else 1.0, is_short)
    assert short > 5 * PROBE
    turns.next(rows(many=64))  # the light client has ended
    assert not turns._short and not turns._full and not turns._due


@pytest.fixture(params=["memory", "window", "whole"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    loaded: LoadedModel = request.getfixturevalue(request.param)
    return loaded


def answers(engine: Engine, requests: list[Request]) -> list[list[Any]]:
    """The tokens of each request with their log-probabilities; the second half comes while the first half runs."""
    outputs: list[list[Any]] = [[] for _ in requests]
    ends: list[tuple[str, str]] = []

    def receive(index: int, output: Any) -> bool:
        if isinstance(output, TokenOutput):
            outputs[index].append(output)
        elif isinstance(output, Finished):
            ends.append((output.reason, output.message))
        return False

    half = len(requests) // 2
    for index, request in enumerate(requests):
        engine.add_request(request, lambda output, index=index: receive(index, output))
        for _ in range(3 if index == half else 0):
            engine.step()
    while engine.has_unfinished:
        engine.step()
    assert ends == [("length", "")] * len(requests)
    return outputs


@pytest.mark.parametrize("pattern", [(True, False), (True, True, True, False), (False, False, True)])
def test_answers_do_not_depend_on_turns(model: LoadedModel, pattern: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with windows that grow, adapters or none, samplers with a seed, and rows of many lengths."""
    requests = [
        Request(
            model.name,
            tuple((7 * i + n * n) % 251 for n in range(5 + 9 * i)),
            max_tokens=24 + 3 * i,
            sampling=SamplingParams(temperature=1.0, repetition_penalty=1.2),
            seed=i,
            logprobs=2 if i % 2 else None,
            return_logprob=bool(i % 2),
            ignore_eos=True,
            client="one" if i in (2, 6) else "many",
        )
        for i in range(8)
    ]
    plain = answers(Engine([model], cache_bytes=0), requests)
    turn, sizes = itertools.cycle(pattern), set()

    def chosen(self: DecodeTurns, sequences: Any) -> Any:
        light = [each for each in sequences if each.request.client == "one"]
        result = light if light and len(light) < len(sequences) and next(turn) else sequences
        sizes.add((len(result), len(sequences)))
        return result

    monkeypatch.setattr(decode_turns.DecodeTurns, "next", chosen)
    assert answers(Engine([model], cache_bytes=0), requests) == plain
    assert any(few < all_ for few, all_ in sizes)


def test_an_error_in_a_short_pass_ends_its_row_alone(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short passes are repeated row by row as others are."""
    requests = [
        Request(model.name, (1, 2, 3 + i), max_tokens=12, seed=i, ignore_eos=True, client="few" if i < 2 else "many")
        for i in range(6)
    ]
    plain = answers(Engine([model], cache_bytes=0), requests)
    turn = itertools.cycle((True, False))

    def chosen(self: DecodeTurns, sequences: Any) -> Any:
        light = [each for each in sequences if each.request.client == "few"]
        return light if light and len(light) < len(sequences) and next(turn) else sequences

    forward = LoadedModel.forward

    def failing(self: Any, tokens: Any, state: Any, lengths: Any = None) -> Any:
        if lengths is None and len(tokens) == 2:
            raise RuntimeError("two rows at once")
        return forward(self, tokens, state, lengths)

    monkeypatch.setattr(decode_turns.DecodeTurns, "next", chosen)
    monkeypatch.setattr(LoadedModel, "forward", failing)
    assert answers(Engine([model], cache_bytes=0), requests) == plain

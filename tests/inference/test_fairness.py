"""Clients share the engine: what one of them asks for, however much, at most doubles the passes that another waits.

Everything is counted in passes and in tokens: they do not depend on the machine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from synthe_core.inference.engine import Engine
from synthe_core.inference.fairness import TokenCounters
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import TokenOutput
from tests.inference.conftest import output_ids


class Gap(NamedTuple):
    """What was computed between two tokens of a sequence: the tokens of each pass over prompts, and passes that
    generate."""

    prompts: list[int]
    decodes: int


class Passes:
    """The passes of an engine's models, in their order: the tokens of one over prompts, 0 for one that generates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[int] = []
        forward = LoadedModel.forward

        def record(model: Any, tokens: Any, state: Any, lengths: Any = None) -> Any:
            self.log.append(0 if lengths is None else tokens.numel())
            return forward(model, tokens, state, lengths)

        monkeypatch.setattr(LoadedModel, "forward", record)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(monkeypatch)


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple((seed * 7919 + n * n * (seed + 3)) % 251 for n in range(length))


def gaps(engine: Engine, passes: Passes, request: Any) -> tuple[list[Gap], list[Any]]:
    """What is computed before each token of a request, and its outputs."""
    outputs: list[Any] = []
    gaps_so_far, since = [], len(passes.log)

    def receive(output: Any) -> bool:
        nonlocal since
        outputs.append(output)
        if isinstance(output, TokenOutput):
            done = passes.log[since:]
            gaps_so_far.append(Gap([count for count in done if count], done.count(0)))
            since = len(passes.log)
        return False

    sequence = engine.add_request(request, receive)
    while not sequence.finished:
        engine.step()
    return gaps_so_far, outputs


def flood(engine: Engine, ask: Any, count: int, length: int, tokens: int = 500, client: str = "many") -> None:
    for seed in range(count):
        engine.add_request(ask(prompt(seed, length), tokens, client=client), lambda output: False)


@pytest.fixture
def decoder(memory: LoadedModel) -> Engine:
    return Engine([memory], max_num_seqs=16, max_waiting=1000, max_state_bytes=1 << 30, cache_bytes=0)


@pytest.mark.parametrize("started", [0, 1, 40])
@pytest.mark.parametrize(("count", "length"), [(200, 40), (60, 3000), (3, 60_000)])
def test_a_flood_at_most_doubles_the_passes(
    decoder: Engine, memory: Any, ask: Any, passes: Passes, count: int, length: int, started: int
) -> None:
    """Many short prompts, many long ones, a few endless ones: before the first token of another client there are as
    many passes over the flood's prompts as over its own, and between two tokens one."""
    victim = ask(prompt(999, 2000), 12, client="one")
    alone, expected = gaps(Engine([memory], max_state_bytes=1 << 30, cache_bytes=0), passes, victim)
    flood(decoder, ask, count, length)
    for _ in range(started):
        decoder.step()
    beside, outputs = gaps(decoder, passes, victim)
    assert output_ids(outputs) == output_ids(expected)
    assert len(alone[0].prompts) == 8 and alone[1:] == [Gap([], 1)] * 11
    assert len(beside[0].prompts) <= 2 * len(alone[0].prompts) + 1
    for gap in beside[1:]:
        assert gap.decodes == 1 and len(gap.prompts) <= 1
        assert sum(gap.prompts) <= decoder.config.max_prefill_tokens


def test_slots_are_shared_by_clients(decoder: Engine, ask: Any) -> None:
    """A client whose sequences have all the slots gives some up, and goes on later where it stood."""
    requests = [ask(prompt(n, 20), 60, client="many") for n in range(30)]
    outputs: list[list[Any]] = [[] for _ in requests]
    for request, own in zip(requests, outputs, strict=True):
        decoder.add_request(request, lambda output, own=own: own.append(output) or False)
    for _ in range(9):
        decoder.step()
    others = [decoder.add_request(ask(prompt(100 + n, 20), 9, client="one"), lambda output: False) for n in range(12)]
    decoder.step()
    statuses = [each.request.client for each in decoder.running if each.status.name in ("PREFILLING", "RUNNING")]
    assert (statuses.count("many"), statuses.count("one")) == (8, 8)
    assert decoder.admission.num_paused == 8 and decoder.admission.num_running == 16
    while not all(each.finished for each in others):
        decoder.step()
    paused = next(each for each in decoder.running if each.status.name == "PAUSED")
    decoder.abort(paused)
    while decoder.has_unfinished:
        decoder.step()
    assert (decoder.admission.num_paused, decoder.admission.num_running, decoder.admission.state_bytes) == (0, 0, 0)
    reasons = [each[-1].reason for each in outputs]
    assert reasons.count("cancelled") == 1 and reasons.count("length") == 29
    again = Engine([paused.resolved.model], max_state_bytes=1 << 30, cache_bytes=0)
    for request, own in zip(requests, outputs, strict=True):
        alone: list[Any] = []
        if own[-1].reason == "length":
            again.add_request(request, lambda output, alone=alone: alone.append(output) or False)
            while again.has_unfinished:
                again.step()
            assert output_ids(own) == output_ids(alone)


def test_one_client_alone_has_all_of_it(decoder: Engine, ask: Any) -> None:
    flood(decoder, ask, 40, 20, tokens=30)
    decoder.step()
    assert decoder.admission.num_running == 16 and decoder.admission.num_paused == 0


def test_nobody_saves_up() -> None:
    counters = TokenCounters()
    counters.enter("busy")
    counters.charge("busy", prompt_tokens=1000, output_tokens=10)
    counters.enter("new")
    assert counters["new"] == counters["busy"] == 1020
    counters.charge("new", prompt_tokens=5)
    counters.leave("busy")
    counters.enter("busy")
    assert counters["busy"] == 1025, "it counts as what the least served has had"
    counters.leave("busy")
    counters.leave("new")
    for number in range(10_000):
        counters.enter(str(number))
        counters.leave(str(number))
    assert len(counters._tokens) <= 4096

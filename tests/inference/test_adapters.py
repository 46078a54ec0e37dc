"""Adapters come and go while their model is serving, and each is a model of its own; all of them share one batch."""

from __future__ import annotations

import pytest
import torch

from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import linear_maps, lora_linears
from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import TokenOutput
from synthe_core.inference.request import NotFound
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.layers.adapter_batch import current_adapters
from tests.adapters.conftest import base, saved  # noqa: F401
from tests.inference.conftest import GREEDY, output_ids


def test_adapters_are_loaded_used_and_unloaded(base, ask, tmp_path):  # noqa: F811
    paths = [saved(tmp_path / name, base, {"rank": 4}, seed).path for seed, name in enumerate("ab")]
    with AsyncEngine([LoadedModel.load(base)], max_state_bytes=1 << 28) as engine:
        plain = output_ids(engine.submit(ask(model="base")))
        for name, path in zip("ab", paths, strict=True):
            engine.load_adapter("base", name, path)
        tickets = [engine.submit(ask(count=12, model=name, logprobs=0)) for name in ("base", "base:a", "base:b") * 2]
        logprobs = [[event.logprob.logprob for event in list(t)[1:-1]] for t in tickets]
        assert logprobs[:3] == logprobs[3:] and logprobs[0] != logprobs[1] != logprobs[2] != logprobs[0]
        for name, path, actual in zip("ab", paths, logprobs[1:], strict=False):
            with AsyncEngine([LoadedModel.load(path, name)], max_state_bytes=1 << 28) as other:
                merged = [event.logprob.logprob for event in list(other.submit(ask(count=12, model=name)))[1:-1]]
                assert actual == pytest.approx(merged, abs=1e-3)
        running = engine.submit(ask(count=60, model="base:a"))
        next(iter(running))
        engine.unload_adapter("base", "a")
        assert list(running)[-1].reason == "length"
        with pytest.raises(NotFound):
            engine.submit(ask(model="base:a"))
        with pytest.raises(InputError, match="already"):
            engine.load_adapter("base", "b", paths[0])
        engine.load_adapter("base", "a", paths[1])
        assert output_ids(engine.submit(ask(model="base:a"))) == output_ids(engine.submit(ask(model="base:b")))
        assert output_ids(engine.submit(ask(model="base"))) == plain


def with_adapters(served):
    """The model afresh, with two adapters of all its maps: of blocks, router, head and confidence, of other ranks."""
    model = LoadedModel.load(served.path, served.name)
    for name, rank in (("a", 2), ("b", 3)):
        draw = torch.Generator().manual_seed(rank)
        maps = {
            each: LowRank(
                torch.randn(rank, linear.in_features, generator=draw),
                torch.randn(linear.out_features, rank, generator=draw) / linear.in_features**0.5,
                0.5,
            )
            for each, linear in linear_maps(model.model).items()
        }
        model.adapters[name] = Adapter(maps)
    return model


@pytest.fixture
def passes(monkeypatch):
    """The adapters of every pass of an engine, a row each."""
    recorded, forward = [], LoadedModel.forward

    def record(self, tokens, *rest):
        recorded.append(current_adapters().indices)
        assert len(recorded[-1]) == len(tokens)
        return forward(self, tokens, *rest)

    monkeypatch.setattr(LoadedModel, "forward", record)
    return recorded


def tokens_of(events):
    return [event for event in events if isinstance(event, TokenOutput)]


def assert_same(outputs, expected, exact):
    assert output_ids(outputs) == output_ids(expected)
    for one, other in zip(outputs, expected, strict=True):
        pairs = (one.logprob.logprob, other.logprob.logprob), (one.confidence, other.confidence)
        assert all(ours == (theirs if exact else pytest.approx(theirs, abs=1e-4)) for ours, theirs in pairs)


@pytest.mark.parametrize("name", ["memory", "window", "whole"])
def test_outputs_do_not_depend_on_other_adapters_in_the_batch(name, ask, request, passes):
    """Rows of two adapters and of none come and go in one batch: every answer and every probability is the same as in
    an engine that has nothing else to do."""
    model = with_adapters(request.getfixturevalue(name))
    draw = torch.Generator().manual_seed(3)
    requests = []
    for number in range(15):
        length = int(torch.randint(1, 60 if number % 6 else 400, (1,), generator=draw))
        prompt = tuple(torch.randint(0, 256, (length,), generator=draw).tolist())
        warm = SamplingParams(temperature=0.9, top_p=0.9) if number % 4 == 0 else GREEDY
        named = name + ("", ":a", ":b")[number % 3]
        requests.append(ask(prompt, 1 + number % 11 * 3, model=named, sampling=warm, seed=number, logprobs=0))
    with AsyncEngine([model], max_state_bytes=1 << 28) as engine:
        handles = [engine.submit(each) for each in requests]
        handles[5].cancel()
        together = [tokens_of(handle) for handle in handles]
    assert max(len(set(indices)) for indices in passes) == 3, "no pass had rows of all three"
    with AsyncEngine([with_adapters(model)], cache_bytes=0, max_state_bytes=1 << 28) as engine:
        for number, each in enumerate(requests):
            if number != 5:
                assert_same(tokens_of(engine.submit(each)), together[number], engine.status()["exact"])


def test_adapters_share_a_batch(memory, ask, passes):
    """As many passes as the longest answer takes, however many adapters there are."""
    names = ("memory", "memory:a", "memory:b") * 2
    with AsyncEngine([with_adapters(memory)], max_state_bytes=1 << 28) as engine:
        handles = engine.call(lambda: [engine.submit(ask(b"one%d" % n, 20, model=m)) for n, m in enumerate(names)])
        assert all(len(output_ids(handle)) == 20 for handle in handles.result())
    assert len(passes) == 1 + 19, "one pass over all prompts, and one for each token after the first"
    assert {len(indices) for indices in passes} == {len(names)}


def test_each_adapter_has_its_own_prefix_cache(memory, ask):
    with AsyncEngine([with_adapters(memory)], max_state_bytes=1 << 28) as engine:
        first = [list(engine.submit(ask(b"x" * 80, 2, model=name))) for name in ("memory", "memory:a", "memory:b")]
        assert [events[0].num_cached_tokens for events in first] == [0, 0, 0]
        again = [engine.submit(ask(b"x" * 80, 2, model=name)) for name in ("memory:b", "memory", "memory:a")]
        assert [next(iter(handle)).num_cached_tokens for handle in again] == [80, 80, 80]
        names = ("memory", "memory:a") * 2
        together = engine.call(lambda: [engine.submit(ask(b"y" * 80, 2, model=name)) for name in names]).result()
        assert sorted(next(iter(handle)).num_cached_tokens for handle in together) == [0, 0, 80, 80]


def test_adapters_are_loaded_and_unloaded_during_generation(base, ask, tmp_path):  # noqa: F811
    """One is loaded, and one in use is unloaded and another loaded by its name, while rows are generating."""
    paths = [saved(tmp_path / str(seed), base, {"rank": 2 + seed}, seed).path for seed in range(3)]
    model = LoadedModel.load(base)
    requests = [ask(b"once", 60, model=name, logprobs=0) for name in ("base", "base:a", "base:b", "base:a")]
    with AsyncEngine([model], cache_bytes=0, max_state_bytes=1 << 28) as engine:
        engine.load_adapter("base", "a", paths[0])
        started = [iter(engine.submit(each)) for each in requests[:2]]
        begun = [[next(events) for _ in range(4)] for events in started]
        engine.load_adapter("base", "b", paths[1])
        later = [engine.submit(requests[2])]
        engine.unload_adapter("base", "a")
        engine.load_adapter("base", "a", paths[2])
        later.append(engine.submit(requests[3]))
        answers = [tokens_of([*first, *rest]) for first, rest in zip(begun, started, strict=True)]
        answers += [tokens_of(handle) for handle in later]
        engine.call(lambda: None).result()
        slots = {slot for linear in lora_linears(model.model).values() for slot in linear.slots}
        assert len(slots) == 2, "an adapter that was unloaded is detached as soon as no row uses it"
        for name in ("a", "b"):
            engine.unload_adapter("base", name)
        assert not lora_linears(model.model)
    for path, answer in zip([None, *paths], answers, strict=True):
        alone = LoadedModel.load(base)
        if path is not None:
            alone.load_adapter("own", path)
        with AsyncEngine([alone], cache_bytes=0, max_state_bytes=1 << 28) as engine:
            named = "base" if path is None else "base:own"
            expected = tokens_of(engine.submit(ask(b"once", 60, model=named, logprobs=0)))
            assert len(answer) == 60
            assert_same(answer, expected, engine.status()["exact"])

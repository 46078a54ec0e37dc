"""Adapters that are swapped, loaded and unloaded under traffic: every answer is its own adapter's, to the bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.adapters import peft
from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import linear_maps, lora_linears
from synthe_core.adapters.spec import LoraSpec
from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import PrefillFinished, TokenOutput
from synthe_core.inference.request import NotFound
from tests.adapters.conftest import base, saved  # noqa: F401
from tests.inference.conftest import output_ids

OPTIONS: dict[str, Any] = {"max_state_bytes": 1 << 28, "cache_bytes": 1 << 24}
PROMPT = b"once upon a time there was a prompt that is long enough to be worth a place in the cache of states" * 2
VERSIONS = 4


@pytest.fixture(scope="module")
def paths(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:  # noqa: F811
    """Versions of an adapter, of several ranks."""
    folder = tmp_path_factory.mktemp("versions")
    return [saved(folder / str(seed), base, {"rank": 2 + seed % 3}, seed).path for seed in range(VERSIONS)]


@pytest.fixture
def engine(base: Path, paths: list[Path]) -> Iterator[AsyncEngine]:  # noqa: F811
    with AsyncEngine([LoadedModel.load(base)], **OPTIONS) as running:
        running.load_adapter("base", "a", paths[0])
        yield running


@pytest.fixture
def alone(base: Path, paths: list[Path], ask: Any) -> Any:  # noqa: F811
    """The answer of each version in an engine that has nothing else to do and remembers nothing."""
    known: dict[tuple[int, bytes, int], list[tuple[int, float]]] = {}

    def answer(version: int, prompt: bytes = PROMPT, count: int = 12) -> list[tuple[int, float]]:
        if (version, prompt, count) not in known:
            with AsyncEngine([LoadedModel.load(base)], max_state_bytes=1 << 28, cache_bytes=0) as other:
                other.load_adapter("base", "a", paths[version])
                known[version, prompt, count] = numbers(other.submit(ask(prompt, count, model="base:a", logprobs=0)))
        return known[version, prompt, count]

    return answer


def numbers(outputs: Any) -> list[tuple[int, float]]:
    """Each token with its log-probability."""
    return [(each.token_id, each.logprob.logprob) for each in outputs if isinstance(each, TokenOutput)]


def test_another_adapter_under_the_name_is_not_answered_from_its_cached_prefixes(engine, ask, paths, alone):
    request = ask(PROMPT, 12, model="base:a", logprobs=0)
    for version in (0, 1, 0, 2):
        if version:
            engine.unload_adapter("base", "a")
            engine.load_adapter("base", "a", paths[version])
        else:
            engine.swap_adapter("base", "a", paths[version])
        first, again = (list(engine.submit(request)) for _ in range(2))
        assert [each.num_cached_tokens for each in first if isinstance(each, PrefillFinished)] == [0]
        assert [each.num_cached_tokens for each in again if isinstance(each, PrefillFinished)] == [len(PROMPT)]
        assert numbers(first) == numbers(again) == alone(version)


def test_a_running_sequence_ends_with_its_version(engine, ask, paths, alone):
    running = engine.submit(ask(PROMPT, 80, model="base:a", logprobs=0))
    begun = [next(iter(running)) for _ in range(3)]
    waiting = engine.call(lambda: engine.submit(ask(b"another", 80, model="base:a", logprobs=0))).result()
    engine.swap_adapter("base", "a", paths[1])
    later = engine.submit(ask(PROMPT, 80, model="base:a", logprobs=0))
    assert numbers([*begun, *running]) == alone(0, count=80)
    assert numbers(waiting) == alone(0, b"another", 80)
    assert numbers(later) == alone(1, count=80)
    model = engine.models["base"]
    assert {slot for each in lora_linears(model.model).values() for slot in each.slots} == set(model._slots)
    assert [*model._slots.values()] == [model.adapters["a"]], "the old version is gone with its last sequence"


def test_a_session_belongs_to_the_version_that_made_it(engine, ask, paths):
    output_ids(engine.submit(ask(PROMPT, 4, model="base:a", session_id="one")))
    engine.swap_adapter("base", "a", paths[1])
    with pytest.raises(InputError, match="or to other weights of that name"):
        engine.submit(ask(b"more", 4, model="base:a", session_id="one"))
    engine.swap_adapter("base", "a", paths[0])
    assert len(output_ids(engine.submit(ask(b"more", 4, model="base:a", session_id="one")))) == 4


@pytest.mark.parametrize("fault", ["damaged", "gone", "of another model", "not finite"])
def test_a_swap_that_fails_leaves_the_old_adapter(engine, ask, paths, alone, tmp_path, base, fault):  # noqa: F811
    path = tmp_path / "bad"
    if fault != "gone":
        shutil.copytree(paths[1], path)
        (path / "manifest.json").unlink()
    if fault == "damaged":
        weights = (path / peft.WEIGHTS).read_bytes()
        (path / peft.WEIGHTS).write_bytes(weights[: len(weights) // 2])
    elif fault in ("of another model", "not finite"):
        wrong = torch.full((3, 17 if fault == "of another model" else 16), float("nan"))
        wrong = torch.ones_like(wrong) if fault == "of another model" else wrong
        name = next(name for name, each in linear_maps(LoadedModel.load(base).model).items() if each.in_features == 16)
        change = LowRank(wrong, torch.zeros(linear_maps(LoadedModel.load(base).model)[name].out_features, 3), 1.0)
        peft.write(path, Adapter({name: change}).tensors, LoraSpec(rank=3), str(base))
    running = engine.submit(ask(PROMPT, 80, model="base:a", logprobs=0))
    with pytest.raises(InputError):
        engine.swap_adapter("base", "a", path)
    with pytest.raises(InputError):
        engine.load_adapter("base", "b", path)
    assert engine.registry.names() == ["base", "base:a"] and list(engine.models["base"].adapters) == ["a"]
    assert numbers(running) == alone(0, count=80)
    assert numbers(engine.submit(ask(PROMPT, 12, model="base:a", logprobs=0))) == alone(0)
    with pytest.raises(NotFound):
        engine.swap_adapter("base", "c", paths[1])


def test_a_swap_that_fails_midway_leaves_the_old_adapter(engine, ask, paths, alone, monkeypatch):
    """The engine's own work fails, after the file was read."""

    def fail(*_: object) -> None:
        raise MemoryError("no room for its factors")

    monkeypatch.setattr(LoadedModel, "fingerprints", fail)
    with pytest.raises(MemoryError):
        engine.swap_adapter("base", "a", paths[1])
    with pytest.raises(MemoryError):
        engine.load_adapter("base", "b", paths[1])
    monkeypatch.undo()
    assert engine.registry.names() == ["base", "base:a"] and list(engine.models["base"].adapters) == ["a"]
    assert numbers(engine.submit(ask(PROMPT, 12, model="base:a", logprobs=0))) == alone(0)
    engine.swap_adapter("base", "a", paths[1])
    assert numbers(engine.submit(ask(PROMPT, 12, model="base:a", logprobs=0))) == alone(1)


@pytest.mark.parametrize("changes", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_changes_under_traffic_never_mix_adapters(base, ask, paths, alone, changes):  # noqa: F811
    """Two names are swapped, unloaded and loaded while requests to them run: each answer is that of the version that
    its name had when it was sent."""
    chance = random.Random(changes)
    prompts = [PROMPT, PROMPT[:50], b"a word"]
    with AsyncEngine([LoadedModel.load(base)], max_num_seqs=8, max_waiting=10_000, **OPTIONS) as engine:
        current = {"a": 0, "b": 1}
        for name, version in current.items():
            engine.load_adapter("base", name, paths[version])
        sent = []
        for number in range(changes):
            name = chance.choice("ab")
            for _ in range(2):
                other, prompt, count = chance.choice("ab"), chance.choice(prompts), chance.choice((3, 12))
                handle = engine.submit(ask(prompt, count, model=f"base:{other}", logprobs=0))
                sent.append((handle, current[other], prompt, count))
            current[name] = chance.randrange(VERSIONS)
            if number % 3:
                engine.swap_adapter("base", name, paths[current[name]])
            else:
                engine.unload_adapter("base", name)
                with pytest.raises(NotFound):
                    engine.submit(ask(PROMPT, 3, model=f"base:{name}"))
                engine.load_adapter("base", name, paths[current[name]])
        for handle, version, prompt, count in sent:
            assert numbers(handle) == alone(version, prompt, count)
        model = engine.models["base"]
        engine.call(lambda: engine.engine.detach_unused(model)).result()
        assert {id(each) for each in model._slots.values()} <= {id(each) for each in model.adapters.values()}
    assert len(sent) == 2 * changes

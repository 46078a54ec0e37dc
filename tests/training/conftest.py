"""A small real text, a small real model, and runs of a few steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synthe_core.events import Event
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, checkpoints

LINE = "the river runs to the sea and comes again as rain on hills that remember every stone"
WORDS = LINE.split()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, so that native kernels are compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SYNTHE_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    draw = random.Random(0)
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(20):
        words = (draw.choice(WORDS) for _ in range(150))
        (folder / f"{number}.txt").write_text(" ".join(words) + "\n")
    return folder


@pytest.fixture
def recipe(text: Path) -> Callable[..., Recipe]:
    """`recipe(**train)`: a recipe of two blocks and six steps; `runtime`, `model` and `data` are merged in."""

    def make(
        runtime: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        **train: Any,
    ) -> Recipe:
        block = [{"type": "attention", "heads": 2, "window": 12}, {"type": "mlp", "hidden": 32}]
        return Recipe.model_validate(
            {
                "name": "tiny",
                "model": {"width": 16, "blocks": 2, "block": block} | (model or {}),
                "data": {"sources": str(text), "sequence": 16, "validation": 0.2} | (data or {}),
                "train": {
                    "budget": "6steps",
                    "batch": 4,
                    "micro_batch": 2,
                    "lr": 1e-2,
                    "validations": 2,
                    "validation_tokens": 512,
                    "log_every": 1,
                }
                | train,
                "runtime": {"device": "cpu", "precision": "float32"} | (runtime or {}),
            }
        )

    return make


def of(events: list[Event], kind: type) -> list[Any]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def files(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of the newest checkpoint of a run."""
    folder = checkpoints(run)[-1]
    return {str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")}


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit: weights, optimizer, random numbers, carried state; and the place in the text."""
    a, b = files(one), files(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key in a[name]:
            assert torch.equal(a[name][key], b[name][key]), (name, key)
    here, there = (Checkpoint.open(run, latest=True) for run in (one, other))
    assert here.training_state()["cursor"] == there.training_state()["cursor"]
    assert here.manifest.metrics == there.manifest.metrics
    assert (here.manifest.step, here.manifest.tokens) == (there.manifest.step, there.manifest.tokens)

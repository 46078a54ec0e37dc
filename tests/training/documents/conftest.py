"""A small real model that knows a short document by heart, so that it finishes sentences of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from synthe_core.recipe.schema import Recipe
from synthe_core.training import recipe_from_checkpoint, train
from tests.inference.conftest import written

TEXT = """# Mill

## Grain

The mill grinds wheat and rye for nine villages. Every sack weighs fifty kilograms.

## Water

The wheel turns when the sluice is opened. Ottilie Brand keeps the key of it.
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fresh cache with the session's kernels in it: material is made by the test that needs it."""
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the sentences of TEXT in changing order."""
    folder = tmp_path_factory.mktemp("memorised")
    sentences = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    (folder / "text.txt").write_text("\n".join(sentences * 60))
    recipe = Recipe.model_validate(
        {
            "name": "base",
            "model": {
                "width": 32,
                "blocks": 2,
                "block": [
                    {"type": "attention", "heads": 2, "window": 10},
                    {"type": "delta", "heads": 2},  # sees the passage
                    {"type": "mlp", "hidden": 64},
                ],
            },
            "data": {"sources": str(folder / "text.txt"), "sequence": 64, "validation": 0.1},
            "train": {"budget": "150steps", "batch": 8, "micro_batch": 8, "lr": 1e-2, "validations": 1},
            "runtime": {"device": "cpu", "precision": "float32", "threads": 1},
        }
    )
    list(train(recipe, out=folder / "run"))
    return folder / "run"


@pytest.fixture
def base(base_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(base_run, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "mill.md"
    path.write_text(TEXT)
    return path


@pytest.fixture
def recipe(base: Path, document: Path) -> Callable[..., Recipe]:
    """`recipe("train.budget=9steps")`: eight steps of an adapter on the document."""

    def make(*overrides: str) -> Recipe:
        return recipe_from_checkpoint(
            base,
            [
                "objective.type=document", f"objective.document={document}", "objective.top_k=8",
                "train.lora={rank: 4}", "train.budget=8steps", "train.batch=4", "train.micro_batch=4",
                "train.validations=2", "train.log_every=1", "data.sequence=512", *overrides,
            ],
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def sensitive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose predictions depend on all that it has read; it writes nothing useful."""
    block = [{"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 32}]
    return written(tmp_path_factory.mktemp("sensitive") / "model", block)

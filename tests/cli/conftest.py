"""A tiny recipe and a checkpoint of it, and ways to run the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from synthe_cli.app import app

RECIPE = """\
name: small
model:
  width: 32
  blocks: 1
  block:
    - {type: attention, heads: 2, window: 16}
    - mlp
data:
  sequence: 32
train:
  budget: 4steps
  batch: 2
runtime:
  device: cpu
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of untrained weights: enough to write nonsense with."""
    from synthe_core.data.tokenizers import ByteTokenizer
    from synthe_core.model.language_model import LanguageModel
    from synthe_core.recipe.schema import Recipe
    from synthe_core.storage import checkpoint as checkpoints
    from synthe_core.storage.manifest import Manifest

    folder = tmp_path_factory.mktemp("run")
    path = folder / "small.yaml"
    path.write_text(RECIPE)
    loaded = Recipe.load(path)
    tokenizer = ByteTokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(loaded.model, tokenizer.vocab_size)
    checkpoints.save(
        folder / "small",
        recipe=loaded,
        vocab=tokenizer.vocab_size,
        tensors=checkpoints.weights(model),
        manifest=Manifest(),
        tokenizer=tokenizer,
    )
    return folder / "small"


@pytest.fixture
def synthe() -> Callable[..., Result]:
    """Runs a command in this process: `.exit_code`, `.stdout`, `.stderr`."""

    def run(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return run

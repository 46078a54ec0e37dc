"""A small model of several learners as a checkpoint, and adapters of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.spec import LoraSpec
from synthe_core.adapters.targets import new_adapter
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, save, weights
from synthe_core.storage.manifest import Manifest

BLOCK: list[Any] = [{"type": "delta", "heads": 2}, {"type": "kalman"}, {"type": "mlp", "hidden": 32}]


def recipe_with(lora: Any = None) -> Recipe:
    return Recipe.model_validate({"model": {"width": 16, "blocks": 2, "block": BLOCK}, "train": {"lora": lora}})


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(recipe_with().model, 257)
    path = tmp_path_factory.mktemp("runs") / "base"
    facts: dict[str, Any] = {"manifest": Manifest(), "tokenizer": ByteTokenizer()}
    save(path, recipe=recipe_with(), vocab=257, tensors=weights(model), **facts)
    return path


def random_adapter(path: Path, spec: LoraSpec, seed: int = 1) -> Adapter:
    """An adapter of the model at `path` that changes every matrix it is of."""
    torch.manual_seed(seed)
    plain = new_adapter(Checkpoint.open(path).model(), spec)
    return Adapter(
        {n: LowRank(c.lora_A, torch.randn_like(c.lora_B) / 3, c.scaling) for n, c in plain.maps.items()}, spec.dropout
    )


def saved(folder: Path, base: Path, lora: dict[str, Any], seed: int = 1) -> Checkpoint:
    """The same as a checkpoint in `folder`."""
    recipe = recipe_with(lora)
    assert recipe.train.lora is not None
    tensors = random_adapter(base, recipe.train.lora, seed).tensors
    over = Checkpoint.open(base)
    return save(folder, recipe=recipe, vocab=257, tensors=tensors, manifest=Manifest(), base=over)

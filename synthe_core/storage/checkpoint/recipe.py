"""The recipe of a path: a recipe file, a run, or any checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint.read import Checkpoint
from synthe_core.storage.path_format import format_of


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path` with `key.path=value` overrides: of a YAML file, a run or checkpoint folder, or a model in
    another format."""
    if path.suffix in (".yaml", ".yml") or format_of(path) is None:
        return Recipe.load(path, overrides)
    return Checkpoint.open(path).recipe_with(overrides)

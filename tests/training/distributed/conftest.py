"""Runs of the variants, each of which is trained once for all tests that look at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.inference.conftest import written
from tests.training.distributed.together import train_together
from tests.training.distributed.variants import SENSITIVE, Variants, cut, sharded

MESHES: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "one": (1, lambda recipe: recipe),
    "two copies": (2, lambda recipe: recipe),
    "two shards": (2, sharded),
    "four copies": (4, lambda recipe: recipe),
    "two of two shards": (4, lambda recipe: sharded(recipe, replicate=2)),
    "two parts": (2, lambda recipe: cut(recipe, 2)),
    "four parts": (4, lambda recipe: cut(recipe, 4)),
    "two copies of two parts": (4, lambda recipe: cut(recipe, 2)),
    "two shards of two parts": (4, lambda recipe: cut(recipe, 2, shard=2)),
}
"""The number of processes, and how a recipe is changed for them."""


class Runs:
    """`runs(mesh, names)`: the run folders of these variants, trained by the processes of a mesh."""

    def __init__(self, folder: Path, steps: int) -> None:
        folder.mkdir()
        self.folder, self.variants = folder, Variants(folder, steps)
        self._done: dict[str, dict[str, Path]] = {}

    def __call__(self, mesh: str, names: Sequence[str]) -> dict[str, Path]:
        size, change = MESHES[mesh]
        done = self._done.setdefault(mesh, {})
        base = self.folder / "base"
        jobs, outs = [], {}
        if mesh == "one" and not base.exists():
            jobs += self.variants.beginnings()
        for name in names:
            if name not in done:
                outs[name] = self.folder / f"{name} {mesh}"
                init = str(base) if "lora" in name else str(self._sensitive()) if name == "document" else None
                recipe = change(self.variants.named(name))
                jobs.append({"recipe": recipe, "out": str(outs[name]), "init": init})
        if jobs:
            ended = train_together(self.folder / f"workers {mesh} {len(done)}", size, jobs)
            assert not (failed := [each for each in ended if "error" in each]), failed
            done |= outs
        return done

    def _sensitive(self) -> Path:
        path = self.folder / "sensitive"
        return path if path.exists() else written(path, SENSITIVE["block"])


@pytest.fixture(scope="session")
def short_runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Of twelve steps."""
    return Runs(tmp_path_factory.mktemp("short") / "runs", steps=12)


@pytest.fixture(scope="session")
def long_runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Of fifty steps."""
    return Runs(tmp_path_factory.mktemp("long") / "runs", steps=50)

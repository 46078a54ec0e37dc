"""Checkpoints of several processes: bits where the mesh is the same, numbers where it is another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.storage.checkpoint.shards import SHARDS, headers
from tests.training.distributed.conftest import MESHES
from tests.training.distributed.test_equal_numbers import assert_equal_curves
from tests.training.distributed.together import assert_same_bits, train_together
from tests.training.distributed.variants import Variants

STOP = 5


class Parts:
    """A run of twelve steps, whole and stopped after some, by the processes of a mesh."""

    def __init__(self, folder: Path, name: str, mesh: str) -> None:
        self.folder, self.mesh, self.name = folder, mesh, name
        self.variants = Variants(folder, steps=12)
        jobs = [self._job(mesh, "whole"), self._job(mesh, "stopped", stop=STOP)]
        self.ended = train_together(folder / "workers", MESHES[mesh][0], jobs)

    def _job(self, mesh: str, out: str, **more: Any) -> dict[str, Any]:
        return {"recipe": MESHES[mesh][1](self.variants.named(self.name)), "out": str(self.folder / out), **more}

    def resumed(self, mesh: str) -> Path:
        """The stopped run, ended by the processes of a mesh."""
        out = self.folder / f"resumed by {mesh}"
        shutil.copytree(self.folder / "stopped", out)
        ended = train_together(
            self.folder / f"workers {mesh}", MESHES[mesh][0], [self._job(mesh, out.name, resume=True)]
        )
        assert "values" in ended[0], ended
        return out


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Parts]:
    made: dict[tuple[str, str], Parts] = {}

    def make(name: str, mesh: str) -> Parts:
        if (name, mesh) not in made:
            made[name, mesh] = Parts(tmp_path_factory.mktemp("parts"), name, mesh)
        return made[name, mesh]

    return make


def test_a_run_of_two_shards_goes_on_with_its_bits(parts: Callable[[str, str], Parts]) -> None:
    run = parts("muon", "two shards")
    assert run.ended[1]["error"] == "Interrupted"
    assert f"stopped at step {STOP}; saved" in run.ended[1]["message"]
    assert_same_bits(run.folder / "whole", run.resumed("two shards"))


def test_one_process_goes_on_with_what_two_shards_saved(parts: Callable[[str, str], Parts]) -> None:
    run = parts("muon", "two shards")
    assert_equal_curves(run.folder / "whole", run.resumed("one"))


def test_every_process_writes_its_own_file_and_every_verb_reads_the_whole(parts: Callable[[str, str], Parts]) -> None:
    run = parts("muon", "two shards").folder / "whole"
    folder = checkpoints(run)[-1]
    assert len(os.listdir(folder / SHARDS)) == 2
    assert not list(folder.rglob("*.metadata"))  # torch's own index is a pickle
    checkpoint = Checkpoint.open(folder)
    model = checkpoint.model()
    saved = headers(folder / SHARDS)
    for name, tensor in model.named_parameters():
        assert saved[f"weights.{name}"].shape == tensor.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "60m", "carried"])
@pytest.mark.parametrize("mesh", ["two copies", "two shards", "two of two shards"])
def test_every_mesh_goes_on_with_its_bits(name: str, mesh: str, parts: Callable[[str, str], Parts]) -> None:
    run = parts(name, mesh)
    assert_same_bits(run.folder / "whole", run.resumed(mesh))


PAIRS = [
    (before, after)
    for before in ("one", "two copies", "two shards")
    for after in ("one", "two copies", "four copies", "two of two shards")
    if before != after
]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_any_mesh_goes_on_with_any_other(before: str, after: str, parts: Callable[[str, str], Parts]) -> None:
    run = parts("60m", before)
    assert_equal_curves(run.folder / "whole", run.resumed(after))

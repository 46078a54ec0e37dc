"""What several processes refuse, and what happens where one of them fails: one line on rank 0, and its exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from synthe_cli import processes
from synthe_core.errors import InputError, WorkError
from synthe_core.recipe.schema import MeshSpec, Recipe
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.training.distributed.launch import SHORT_OF_MEMORY, _again
from synthe_core.training.distributed.mesh import Mesh, check_batch
from synthe_core.training.distributed.start import process_group
from tests.paths import ROOT
from tests.processes import run_program
from tests.training.distributed.together import train_together
from tests.training.distributed.variants import Variants


@pytest.mark.parametrize(
    ("keys", "size", "mesh"),
    [
        ({}, 1, (1, 1, 1)),
        ({}, 4, (4, 1, 1)),
        ({"shard": "auto"}, 4, (1, 4, 1)),
        ({"shard": 2}, 4, (2, 2, 1)),
        ({"replicate": 2, "shard": "auto"}, 6, (2, 3, 1)),
        ({"replicate": 1, "shard": "auto"}, 4, (1, 4, 1)),
        ({"sequence": 2}, 4, (2, 1, 2)),
        ({"shard": "auto", "sequence": 2}, 8, (1, 4, 2)),
    ],
)
def test_auto_is_what_the_other_leaves(keys: dict[str, Any], size: int, mesh: tuple[int, int, int]) -> None:
    assert Mesh.of(MeshSpec(**keys), size) == mesh


@pytest.mark.parametrize(
    "keys",
    [
        {"replicate": 3},
        {"shard": 3},
        {"replicate": 2, "shard": 4},
        {"replicate": 8},
        {"sequence": 3},
        {"sequence": 8},
        {"sequence": 2, "shard": 4},
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="and there are 4 processes"):
        Mesh.of(MeshSpec(**keys), 4)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(Variants(tmp_path).recipe(batch=8))
    check_batch(recipe, 4)
    with pytest.raises(InputError, match=r"train\.batch 8 does not divide over 3 processes") as caught:
        check_batch(recipe, 3)
    assert "train.batch=6" in str(caught.value.hint)


def test_a_process_whose_company_does_not_come_stops_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate(Variants(tmp_path).recipe() | {"runtime": {"device": "cpu", "mesh": {"timeout": 1}}})
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(WorkError, match="the 2 processes did not meet at localhost:0 within 1 seconds"),
        process_group(recipe),
    ):
        raise AssertionError("nobody came")


def test_processes_without_an_address_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate(Variants(tmp_path).recipe())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, and RANK is not set"), process_group(recipe):
        raise AssertionError("there is no group")


def test_a_full_disk_on_one_rank_is_one_error_on_all_and_the_last_checkpoint_stays(tmp_path: Path, cache: Path) -> None:
    recipe = Variants(tmp_path, steps=6).recipe(save_every="1steps")
    job = {"recipe": recipe, "out": str(tmp_path / "run"), "full_disk": {"rank": 1, "after": 2}}
    (ended,) = train_together(tmp_path / "workers", 2, [job])
    assert ended["error"] == "WorkError"
    assert ended["message"].startswith("rank 1: the disk is full")
    others = json.loads((tmp_path / "workers" / "results-1.json").read_text())
    assert others == [ended]
    newest = checkpoints(tmp_path / "run")[-1]
    assert Checkpoint.open(newest).model() is not None
    assert Checkpoint.open(newest).training_state()["step"] == int(newest.name[5:])


def test_processes_that_run_out_of_memory_go_on_with_a_smaller_micro_batch(tmp_path: Path, cache: Path) -> None:
    recipe = Variants(tmp_path, steps=4).recipe(micro_batch=4)
    job = {"recipe": recipe, "out": str(tmp_path / "run"), "too_many_rows": 3}
    first, again = train_together(tmp_path / "workers", 2, [job, job | {"resume": True}])
    assert first["error"] == "OutOfMemory"
    assert first["message"] == "out of memory with a micro-batch of 4 on rank 0"
    assert again["values"]["steps"] == 4
    assert Checkpoint.open(tmp_path / "run").training_state()["micro_batch"] == 2


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ({0: 2, 1: -signal.SIGTERM}, None),  # bad input, and the agent ends the other
        ({0: 1}, None),
        ({0: 1, 1: -signal.SIGKILL}, "process 1 was ended by signal 9"),
        ({0: SHORT_OF_MEMORY, 1: SHORT_OF_MEMORY}, "memory ran out"),
    ],
)
def test_processes_start_again_where_that_may_help(codes: dict[int, int], reason: str | None) -> None:
    assert _again(codes) == reason
    assert processes.SHORT_OF_MEMORY == SHORT_OF_MEMORY


def errors_of(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """The exit code of a command, and the lines of its errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = run_program([sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    return ended.returncode, [line for line in ended.stderr.splitlines() if line.startswith("error:")]


@pytest.mark.slow
def test_an_error_of_all_processes_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(Variants(tmp_path).recipe(batch=3)))
    code, errors = errors_of(tmp_path, "synthe_cli", "train", "recipe.json", "--processes", "2")
    assert code == InputError.exit_code
    assert errors == ["error: train.batch 3 does not divide over 2 processes"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_ranks_with_other_recipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(Variants(tmp_path).recipe()))
    command = f"exec {sys.executable} -m synthe_cli train recipe.json --set train.lr=0.00$((RANK+1))"
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    code, errors = errors_of(tmp_path, *torchrun, "bash", "-c", command)
    assert code != 0
    assert len(errors) == 1
    assert "rank 1 trains another recipe than rank 0: train.lr: 0.001 -> 0.002" in errors[0]

"""Trains recipes by several processes, each of which takes every job in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.storage.checkpoint.shards import SHARDS, read_shards
from tests.paths import ROOT
from tests.processes import start
from tests.training.distributed.plugin import install

LIMIT = 1500.0


def train_together(folder: Path, size: int, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each job ends with on rank 0. AssertionError with the traceback of a process that crashed."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    path = os.pathsep.join([str(ROOT), str(install(folder / "packages"))])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "tests.training.distributed.worker"]
    processes = [
        start(
            [*program, str(rank), str(size), str(folder)],
            limit=LIMIT,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"stderr-{rank}").open("wb"),
        )
        for rank in range(size)
    ]
    codes = [process.wait() for process in processes]
    everyone = []
    for rank, code in enumerate(codes):
        path = folder / f"results-{rank}.json"
        ended = json.loads(path.read_text()) if path.is_file() else []
        assert not (crashed := [each["crash"] for each in ended if "crash" in each]), crashed[0]
        assert code == 0, (rank, (folder / f"stderr-{rank}").read_text()[-3000:])
        everyone.append(ended)
    return everyone[0]


def curve(run: Path) -> list[tuple[int, str, float]]:
    """The step, phase and loss of every metric of a run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["phase"], line["loss"]) for line in lines]


def assert_same_bits(one: Path, other: Path) -> None:
    """Weights, optimizer, random numbers and carried state of the newest checkpoints, and the place in the text.

    Of tensors that every process has, torch chooses which one writes them: only their values are the same.
    """
    a, b = (_tensors(checkpoints(run)[-1]) for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    here, there = (Checkpoint.open(run, latest=True) for run in (one, other))
    assert here.training_state()["cursor"] == there.training_state()["cursor"]
    assert here.manifest.metrics == there.manifest.metrics
    assert (here.manifest.step, here.manifest.tokens) == (there.manifest.step, there.manifest.tokens)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint; those of its shards as wholes."""
    files = [path for path in folder.rglob("*.safetensors") if path.parent != folder / SHARDS]
    named = {f"{path.name} {name}": tensor for path in files for name, tensor in load_file(path).items()}
    return named | read_shards(folder / SHARDS)

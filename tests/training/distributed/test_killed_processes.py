"""Processes that are killed start again, by `synthe train --processes` and by torchrun, and end at the bits of never
having stopped."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synthe_core.storage.checkpoint import checkpoints
from tests.paths import ROOT
from tests.processes import start
from tests.training.distributed.together import assert_same_bits
from tests.training.distributed.variants import Variants, sharded

KILLS, MANY = 2, 20
"""Of two processes and of four, each at another moment."""
WHILE_TRAINING, LATER = 0.8, 1.0
"""The share of kills that come after another step, and the seconds that they may come later."""
LIMIT = 5400.0
CHILD = re.compile(r"^PPid:\s+(\d+)$", re.MULTILINE)


processes_are_listed = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="it looks for processes in /proc"
)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run `synthe`."""
    ids = []
    for each in Path("/proc").iterdir():
        try:
            parent = CHILD.search((each / "status").read_text()) if each.name.isdecimal() else None
            if parent and int(parent[1]) == pid and b"synthe_cli" in (each / "cmdline").read_bytes():
                ids.append(int(each.name))
        except OSError:
            continue  # it has ended meanwhile
    return ids


def run(folder: Path, out: str, launcher: list[str], cache: Path, more: list[str]) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", *launcher, "train", "recipe.json", "--out", out, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SYNTHE_CACHE": str(cache)}
    log = (folder / f"{out}.log").open("wb")
    return start(program, limit=LIMIT, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=log)


def newest(run: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max([0, *(int(each.name[5:]) for each in checkpoints(run))])


def kill_one(launcher: subprocess.Popen[bytes], processes: int, draw: random.Random, log: Path) -> None:
    """Kills one of the processes of a launcher, as soon as it has all of them, and waits until they have ended."""
    while len(victims := children(launcher.pid)) < processes:
        assert launcher.poll() is None, log.read_text()
        time.sleep(0.01)
    os.kill(draw.choice(victims), signal.SIGKILL)
    while set(children(launcher.pid)) & set(victims):
        time.sleep(0.01)


def wait_for_step(step: int, launcher: subprocess.Popen[bytes], run: Path, log: Path) -> None:
    while newest(run) < step:
        assert launcher.poll() is None, (newest(run), log.read_text())
        time.sleep(0.01)


def trained_whole(folder: Path, steps: int, processes: int, cache: Path) -> Path:
    """Writes the recipe, and trains it without an interruption."""
    recipe = sharded(Variants(folder, steps=steps).recipe(optimizer="muon", save_every="1steps"))
    (folder / "recipe.json").write_text(json.dumps(recipe))
    whole = run(folder, "whole", ["synthe_cli"], cache, ["--processes", str(processes)])
    assert whole.wait() == 0, (folder / "whole.log").read_text()
    return folder / "whole"


@pytest.mark.slow
@processes_are_listed
def test_a_killed_process_costs_no_bit(tmp_path: Path, cache: Path) -> None:
    whole, parts, log = trained_whole(tmp_path, 30, 2, cache), tmp_path / "parts", tmp_path / "parts.log"
    draw = random.Random(2)
    launcher = run(tmp_path, "parts", ["synthe_cli"], cache, ["--processes", "2"])
    for kill in range(KILLS):
        wait_for_step(draw.randrange(1, 14) + 15 * kill, launcher, parts, log)
        kill_one(launcher, 2, draw, log)
    assert launcher.wait() == 0, log.read_text()
    assert log.read_text().count("all start again from the newest checkpoint") == KILLS
    assert_same_bits(whole, parts)


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)  # a process that lost another ends half a minute later, and four take a minute to start
@processes_are_listed
def test_torchrun_goes_on_by_itself_however_often_one_of_four_is_killed(tmp_path: Path, cache: Path) -> None:
    """The moments are random: in a step, in a checkpoint, or while processes start."""
    whole, parts, log = trained_whole(tmp_path, 5 * MANY, 4, cache), tmp_path / "parts", tmp_path / "parts.log"
    draw = random.Random(4)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "4", "--max-restarts", str(MANY)]
    launcher = run(tmp_path, "parts", [*torchrun, "-m", "synthe_cli"], cache, [])
    for _ in range(MANY):
        if draw.random() < WHILE_TRAINING:
            wait_for_step(newest(parts) + 1, launcher, parts, log)
        time.sleep(draw.random() * LATER)
        kill_one(launcher, 4, draw, log)
    assert launcher.wait() == 0, log.read_text()
    assert_same_bits(whole, parts)

"""`synthe train --processes`: processes that are killed start again, and end at the bits of never having stopped."""

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

KILLS = 2
"""Of each mesh, each at another moment."""
CHILD = re.compile(r"^PPid:\s+(\d+)$", re.MULTILINE)


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


def run(folder: Path, out: str, processes: int, cache: Path) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "synthe_cli", "train", "recipe.json", "--out", out, "--processes", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SYNTHE_CACHE": str(cache)}
    log = (folder / f"{out}.log").open("wb")
    return start(program, limit=600, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=log)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it looks for processes in /proc")
@pytest.mark.parametrize("processes", [2, 4])
def test_a_killed_process_costs_no_bit(processes: int, tmp_path: Path, cache: Path) -> None:
    recipe = sharded(Variants(tmp_path, steps=30).recipe(optimizer="muon", save_every="1steps"))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert run(tmp_path, "whole", processes, cache).wait() == 0, (tmp_path / "whole.log").read_text()
    draw = random.Random(processes)
    launcher = run(tmp_path, "parts", processes, cache)
    for kill in range(KILLS):
        until = draw.randrange(1, 14) + 15 * kill
        while (newest := max([0, *(int(each.name[5:]) for each in checkpoints(tmp_path / "parts"))])) < until:
            assert launcher.poll() is None, (newest, (tmp_path / "parts.log").read_text())
            time.sleep(0.01)
        victims = children(launcher.pid)
        assert len(victims) == processes
        os.kill(draw.choice(victims), signal.SIGKILL)
        while set(children(launcher.pid)) & set(victims):
            time.sleep(0.01)
    assert launcher.wait() == 0, (tmp_path / "parts.log").read_text()
    assert (tmp_path / "parts.log").read_text().count("all start again from the newest checkpoint") == KILLS
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")

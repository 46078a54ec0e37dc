"""`synthe sweep`: what is printed, what is refused, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.processes import PROGRAM, start
from tests.sweep.recipes import write_recipe, write_texts

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, with a text and a recipe; programs that it starts use this checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_texts(tmp_path)
    write_recipe(tmp_path)
    return tmp_path


def statuses(folder: str = "runs/sweep-small") -> dict[str, str]:
    return {each["name"]: each["status"] for each in json.loads((Path(folder) / "sweep.json").read_text())["runs"]}


def test_a_failing_run_does_not_stop_the_others(synthe: Run) -> None:
    (Path("texts") / "ends.txt").touch()
    done = synthe("sweep", "small.yaml", "--over", "data.sources=texts,texts/ends.txt", "--jobs", 2)
    assert done.exit_code == 1
    failed = "1 of 2 runs failed: sources=texts-ends.txt"
    assert f"error: {failed}\nhint: see runs/sweep-small/logs\n" in done.stderr
    assert statuses() == {"sources=texts": "finished", "sources=texts-ends.txt": "failed"}
    assert "warning: sources=texts-ends.txt failed: " in done.stderr
    *_, head, first, second, path = done.stdout.splitlines()
    assert head.split() == ["#", "run", "loss", "bits/byte", "parameters", "tokens", "time"]
    assert first.split()[:2] == ["1", "sources=texts"]
    assert second.split()[:3] == ["-", "sources=texts-ends.txt", "failed"]
    assert path == "runs/sweep-small/sources=texts"
    (Path("texts") / "ends.txt").write_text("one and two are three\n" * 200)  # now it can be trained
    again = synthe("sweep", "small.yaml", "--over", "data.sources=texts,texts/ends.txt", "--json")
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert again.exit_code == 0, again.stderr
    assert events[0] == {
        "event": "notice", "message": "1 of 2 runs are done already: runs/sweep-small", "level": "info"
    }  # fmt: skip
    assert [each["case"] for each in events if each["event"] == "measurement"] == ["sources=texts-ends.txt"]
    assert events[-1]["event"] == "result" and len(events[-1]["values"]["runs"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--over", "train.lrr=1,2"), "--over train.lrr=1: unknown key 'train.lrr'", "did you mean 'lr'?"),
        (("--over", "train.lr"), "--over train.lr: expected KEY=VALUE,VALUE", "for example --over train.lr=1e-3,2e-3"),
        ((), "a sweep of one run", "give values of a key, as --over train.lr=1e-3,2e-3, or several recipes"),
        (("--over", "seed=0,1", "--launcher", "locl"), "unknown launcher 'locl'", "did you mean 'local'?"),
        (("--over", "seed=0,1", "--metric", "los"), "unknown metric 'los'", "did you mean 'loss'?"),
        (("--over", "seed=0,1", "--slurm", "time=5"), "--slurm needs --launcher slurm", None),
        (("--over", "seed=0,1", "--out", "small.yaml"), "small.yaml is a file", "--out names a folder"),
    ],
)
def test_bad_input_starts_nothing(synthe: Run, arguments: tuple[str, ...], message: str, hint: str | None) -> None:
    done = synthe("sweep", "small.yaml", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"error: {message}\n" + (f"hint: {hint}\n" if hint else "")
    assert not Path("runs").exists()


@pytest.mark.parametrize(("launcher", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_that_is_not_installed(
    synthe: Run, launcher: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthe_core.benchmarks.synthetic.launch.find_spec", lambda name: None)
    done = synthe("sweep", "small.yaml", "--over", "seed=0,1", "--launcher", launcher)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"error: --launcher {launcher} needs {module}",
        f"hint: pip install {module}, or 'synthe[cluster]'",
    ]


@pytest.mark.slow
def test_ctrl_c_saves_the_runs_and_the_same_command_goes_on(somewhere: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "sweep", "small.yaml", "--over", "seed=0,1", "--jobs", "2"]
    long = [*command, "--set", "train.budget=1000000steps", "--json"]
    process = start(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = set()
    while len(seen) < 2:
        event = json.loads(process.stdout.readline())
        if event["event"] == "progress" and event["what"] != "sweep" and event["done"] > 0:
            seen.add(event["what"])
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "stopped with 0 of 2 runs finished\nhint: the same command goes on with what is left" in stderr
    assert set(statuses().values()) == {"interrupted"}
    steps = {name: max(int(each.name[5:]) for each in (somewhere / f"runs/sweep-small/{name}/checkpoints").iterdir())
             for name in seen}  # fmt: skip
    process = start(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    again: dict[str, float] = {}
    while len(again) < 2:
        event = json.loads(process.stdout.readline())
        if event["event"] == "progress" and event["what"] != "sweep":
            again.setdefault(event["what"], event["done"])
    assert all(again[name] >= steps[name] for name in seen)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate()
    assert process.returncode == 130

"""`synthe train`: what is printed where, chains, interruptions, and what cannot be done."""

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
from tests.processes import run_program, start

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, with a text of its own to learn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for i in range(30):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"{i} times {i} is {i * i}\n" * 10)
    return tmp_path


QUICK = ("--data", "texts", "--set", "train.validation_tokens=64", "--set", "runtime.precision=float32")


def test_it_prints_the_run_and_nothing_else(synthe: Run, recipe: Path) -> None:
    done = synthe("train", recipe, *QUICK, "--set", 'train.sample="1"', "--out", "runs/mine")
    assert (done.exit_code, done.stdout) == (0, "runs/mine\n"), done.stderr
    assert not [hex(ord(c)) for c in done.stderr if not (c.isprintable() or c in "\n\t")]
    for part in ("train  ", "step 4", "bits/byte", "validation  step", "sample  step", "saved  step 4"):
        assert part in done.stderr
    assert done.stderr.splitlines()[-1].startswith("loss ")
    assert len((Path("runs/mine") / "metrics.jsonl").read_text().splitlines()) >= 2
    assert synthe("generate", "runs/mine", "-p", "1", "-n", 3).stdout.startswith("1")


def test_json_lines_end_in_the_result(synthe: Run, recipe: Path) -> None:
    done = synthe("train", recipe, *QUICK, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert events[-1]["event"] == "result"
    assert events[-1]["path"] == "runs/small"
    assert events[-1]["values"]["steps"] == 4
    assert {"notice", "progress", "metric", "saved"} <= {event["event"] for event in events}
    assert {"train", "validation"} == {event["phase"] for event in events if event["event"] == "metric"}


def test_overrides_reach_the_run(synthe: Run, recipe: Path) -> None:
    done = synthe("train", recipe, *QUICK, "--set", "train.budget=2steps", "--set", "train.lr=0.5", "--out", "r")
    assert done.exit_code == 0
    saved = json.loads(synthe("recipe", "show", "r", "--json").stdout)["recipe"]
    assert (saved["train"]["lr"], saved["train"]["budget"]) == (0.5, "2steps")
    assert [source["source"] for source in saved["data"]["sources"]] == ["texts"]


def begun(recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    """A long training in a process of its own, which has made its first step when this returns."""
    command = [sys.executable, "-m", "synthe_cli.app", "train", str(recipe), *QUICK, "--json", *arguments]
    running = start(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert running.stdout is not None
    for line in running.stdout:
        if json.loads(line)["event"] == "metric":
            return running
    raise AssertionError(running.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_saves_and_prints_how_to_resume(synthe: Run, recipe: Path, number: int) -> None:
    running = begun(recipe, "--set", "train.budget=100000steps", "--set", "train.validations=1")
    running.send_signal(number)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "stopping: saving first" in err
    assert err.splitlines()[-1] == "hint: resume with: synthe train runs/small --resume"
    assert "Traceback" not in err
    step = [json.loads(line) for line in out.splitlines()][-1]["step"]
    assert f"stopped at step {step}; saved\n" in err
    again = synthe("train", "runs/small", "--resume", "--set", f"train.budget={step + 2}steps")
    assert (again.exit_code, again.stdout) == (0, "runs/small\n"), again.stderr
    assert f"resuming from step {step}" in again.stderr


def test_the_second_signal_ends_it_at_once() -> None:
    """Even where the work never looks at the first."""
    program = (
        "import os, signal, time\n"
        "from synthe_cli import app as application\n"
        "from synthe_cli.signals import stop_on_signal\n"
        "def work(self, ctx):\n"
        "    with stop_on_signal() as stop:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        assert stop.is_set()\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(60)\n"
        "application.Group.invoke = work\n"
        "application.app(['train', 'x'])\n"
    )
    done = run_program([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr


def test_commands_chain_in_a_shell(recipe: Path) -> None:
    synthe = f"{sys.executable} -m synthe_cli.app"
    command = f"{synthe} train {recipe} {' '.join(QUICK)} | {synthe} generate - --prompt 7 --tokens 5"
    done = run_program(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7")
    command = f"{synthe} train no-such.yaml | {synthe} generate - --prompt 7"
    done = run_program(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert sorted(line for line in done.stderr.splitlines() if line.startswith("error")) == [
        "error: no checkpoint path on stdin",
        "error: no such recipe: 'no-such.yaml'",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no-such.txt"], "no such file or source: 'no-such.txt'"),
        (["--data", "empty.txt"], "empty.txt is empty"),
        (["--data", "short.txt"], "'short.txt' is shorter than one sequence"),
        (["--resume"], "--resume needs the folder of a run"),
        (["--resume", "--out", "runs/none"], "no such run: runs/none"),
        (["--out", "texts"], "texts is not empty"),
        (["--out", "short.txt"], "short.txt is a file"),
        (["--set", "runtime.kernels.delta_rul=native"], "unknown operator 'delta_rul'"),
    ],
)
def test_invalid_arguments(synthe: Run, recipe: Path, somewhere: Path, arguments: list[str], message: str) -> None:
    (somewhere / "empty.txt").touch()
    (somewhere / "short.txt").write_text("a few words")
    result = synthe("train", recipe, *QUICK[2:], *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert result.stderr.splitlines()[-1].startswith("hint: ")
    assert not (somewhere / "runs").exists()

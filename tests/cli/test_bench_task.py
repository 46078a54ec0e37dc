"""`synthe bench TASK`: every option by a real, tiny run."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import synthe_core
from synthe_core.benchmarks.synthetic import sweep as sweeps
from synthe_core.benchmarks.synthetic.trial import Trial
from tests.paths import ROOT
from tests.processes import start

Run = Callable[..., Any]
SMALL = ("mqar", "--vocab", 16, "--pairs=2", "--length", 16, "--width", 32)
QUICK = (*SMALL, "--steps", 2)


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved_records(folder: str | Path = "runs/bench/mqar") -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("trial-*.json"))]


def events(done: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_line_for_the_trial_and_a_table(synthe: Run) -> None:
    done = synthe("bench", *QUICK)
    assert done.exit_code == 0, done.stderr
    trial, title, heads, row = done.stdout.splitlines()
    assert trial.startswith("delta  accuracy ")
    assert title == "mqar vocab=16 pairs=2 length=16, quick preset: chance 12%"
    assert heads.split()[:4] == ["model", "accuracy", "pairs", "2"]
    (record,) = saved_records()
    assert row.split()[:3] == ["delta", f"{record['accuracy']:.1%}", f"{record['accuracy']:.1%}"]
    assert all(c.isprintable() or c == "\n" for c in done.stdout + done.stderr)
    assert re.search(r"^delta  validation  step 2  loss \d\.\d+  accuracy", done.stderr, re.MULTILINE)


def test_json_lines_end_in_the_records(synthe: Run) -> None:
    done = synthe("bench", *QUICK, "--layer", "delta", "--layer", "kalman", "--json", "--out", "o")
    assert (done.exit_code, done.stderr) == (0, "")
    emitted = events(done)
    assert emitted[-1]["event"] == "result" and emitted[-1]["path"] == "o"
    assert [e["case"] for e in emitted if e["event"] == "measurement"] == ["delta", "kalman"]
    assert {e["what"] for e in emitted if e["event"] == "metric"} == {"delta", "kalman"}
    records = emitted[-1]["values"]["trials"]
    assert sorted(record["digest"] for record in records) == sorted(record["digest"] for record in saved_records("o"))
    for record in records:
        trial = Trial.model_validate(record["trial"])
        assert record["version"] == synthe_core.__version__
        assert record["digest"] == trial.digest() and re.fullmatch("[0-9a-f]{12}", record["digest"])
        assert (trial.seed, trial.steps, record["steps"], record["tokens"]) == (0, 2, 2, 2 * 16 * trial.batch)
        assert record["hardware"] and record["torch"] and record["device"] == "cpu"
        assert record["seconds"] >= 0 and record["state_bytes"] > 0 and record["parameters"] > 0
        assert record["ended"] == "budget" and 0 <= record["accuracy"] <= 1 and record["chance"] == 1 / 8
    delta, kalman = (set(record["kernels"]) for record in records)
    assert "delta_rule" in delta - kalman and "kalman_filter" in kalman - delta  # each its own, in one process


def test_csv(synthe: Run) -> None:
    assert synthe("bench", *QUICK, "--seeds", 2, "--csv", "all.csv").exit_code == 0
    with open("all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["label"], row["seed"], row["value"]) for row in rows] == [
        ("mqar", "delta", str(seed), "2") for seed in range(2)
    ]
    accuracies = {str(record["trial"]["seed"]): record["accuracy"] for record in saved_records()}
    assert {row["seed"]: float(row["accuracy"]) for row in rows} == accuracies


def test_plot_draws_bars_and_writes_the_page(synthe: Run) -> None:
    done = synthe("bench", *QUICK, "--plot")
    assert done.exit_code == 0, done.stderr
    (bar,) = (line for line in done.stdout.splitlines() if "·" in line or "█" in line)
    assert bar.split()[:2] == ["delta", "2"]
    assert Path("runs/bench/mqar/report.html").read_text().startswith("<!doctype html>")
    assert "charts: runs/bench/mqar/report.html" in done.stderr


def test_fail_under(synthe: Run) -> None:
    assert synthe("bench", *QUICK, "--fail-under", 0).exit_code == 0
    for as_json in ((), ("--json",)):
        done = synthe("bench", *QUICK, "--fail-under", 0.9, *as_json)
        assert done.exit_code == 1
        assert re.fullmatch(r"error: delta on mqar: accuracy 0\.\d+ is below 0\.9", done.stderr.splitlines()[-1]), (
            done.stderr
        )
    assert events(done)[-1]["event"] == "result"


def test_seeds_have_a_mean_and_a_deviation(synthe: Run) -> None:
    done = synthe("bench", *SMALL, "--steps", 30, "--seeds", 3)
    assert done.exit_code == 0, done.stderr
    *lines, row = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["delta seed=0", "delta seed=1", "delta seed=2"]
    assert re.match(r"delta +[\d.]+% ± [\d.]+ +[\d.]+% +3 ", row)
    assert len({record["accuracy"] for record in saved_records()}) > 1


def test_a_sweep_has_a_row_for_each_setting(synthe: Run) -> None:
    done = synthe("bench", *QUICK, "--sweep", "batch=8,16", "--sweep", "lr=1e-3,3e-3")
    assert done.exit_code == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[-5:]]
    assert lines[0][:4] == ["model", "batch", "lr", "accuracy"]
    assert {tuple(line[1:3]) for line in lines[1:]} == {
        (batch, lr) for batch in ("8", "16") for lr in ("0.001", "0.003")
    }
    assert "sweep  100%  4/4 trials" in done.stderr


def test_keys_of_the_learner_and_of_the_task(synthe: Run) -> None:
    done = synthe("bench", *QUICK, "--set", "learner.heads=4", "-s", "learner.beta_range=[0,2]", "-s", "task.power=0.5")
    assert done.exit_code == 0, done.stderr
    (record,) = saved_records()
    (delta,) = record["trial"]["model"]["block"]
    assert (delta["heads"], delta["beta_range"]) == (4, [0, 2])
    assert record["trial"]["settings"] == {"power": 0.5, "vocab": 16, "pairs": 2, "length": 16}


def test_keys_of_the_task_are_options(synthe: Run) -> None:
    done = synthe("bench", "state-tracking", "--group", "S3", "--width", 32, "--steps", 1)
    assert done.exit_code == 0, done.stderr
    (record,) = saved_records("runs/bench/state-tracking")
    assert record["trial"]["settings"] == {"group": "S3"} and record["chance"] == pytest.approx(1 / 6)
    assert {share["settings"]["group"] for share in record["shares"]} == {"S3"}


def test_a_hybrid_and_a_recipe(synthe: Run, recipe: Path) -> None:
    done = synthe("bench", *QUICK, "--layer", "conv,attention", "--recipe", recipe)
    assert done.exit_code == 0, done.stderr
    blocks = {
        record["trial"]["label"]: [entry["type"] for entry in record["trial"]["model"]["block"]]
        for record in saved_records()
    }
    assert blocks == {"conv,attention": ["conv", "attention"], "small": ["attention", "mlp"]}


def test_lr_epochs_and_preset_reach_the_trial(synthe: Run) -> None:
    done = synthe("bench", *QUICK, "--lr", 0.002, "--epochs", 2, "--preset", "standard")
    assert done.exit_code == 0, done.stderr
    trial = saved_records()[0]["trial"]
    assert (trial["lr"], trial["epochs"], trial["steps"], trial["preset"]) == (0.002, 2, 2, "standard")


def test_the_same_command_runs_only_missing_trials(synthe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    real = sweeps.run

    def counted(trial: Trial, *rest: Any) -> Any:
        ran.append(trial.seed)
        return real(trial, *rest)

    monkeypatch.setattr(sweeps, "run", counted)

    def again() -> tuple[list[int], str]:
        ran.clear()
        done = synthe("bench", *QUICK, "--seeds", 4)
        assert done.exit_code == 0, done.stderr
        return list(ran), done.stdout.splitlines()[-1].rpartition("  ")[0]

    first, table = again()
    assert first == [0, 1, 2, 3]
    assert again()[0] == []
    paths = {json.loads(path.read_text())["trial"]["seed"]: path for path in Path("runs").rglob("trial-*.json")}
    whole = paths[3].read_text()
    paths[0].unlink()
    paths[1].write_text(whole[: len(whole) // 2])  # cut off
    paths[2].write_text("{}")  # not a record
    paths[3].write_text(paths[3].read_text().replace('"seconds"', '"minutes"'))  # one without a key
    rerun, same = again()
    assert rerun == [0, 1, 2, 3]
    assert same.split()[:5] == table.split()[:5]
    paths[0].write_text(paths[1].read_text())  # another trial's
    assert again()[0] == [0]


def begun(*arguments: object) -> subprocess.Popen[str]:
    """A long sweep in a process of its own, whose first trial is finished when this returns."""
    command = [sys.executable, "-m", "synthe_cli.app", "bench", *map(str, SMALL), *map(str, arguments), "--json"]
    running = start(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert running.stdout is not None
    for line in running.stdout:
        if json.loads(line)["event"] == "measurement":
            return running
    raise AssertionError(running.communicate()[1])


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interruption_preserves_finished_trials(jobs: int) -> None:
    running = begun("--seeds", 40, "--steps", 20, "--jobs", jobs)
    os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C does: to the workers too
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    many = len(saved_records())
    assert 1 <= many < 40
    *_, last, hint = err.splitlines()
    assert last == f"stopped with {many} of 40 trials finished"
    assert hint == "hint: the same command runs the remaining trials"
    assert "Traceback" not in err and "KeyboardInterrupt" not in err


def test_parallel_trials_give_the_same_results_and_report_progress(synthe: Run) -> None:
    arguments = (*QUICK[:-1], 20, "--seeds", 2, "--json")
    one, two = (events(synthe("bench", *arguments, "--out", f"o{jobs}", "--jobs", jobs)) for jobs in (1, 2))
    first, second = (emitted[-1]["values"]["trials"] for emitted in (one, two))
    for record in first + second:
        del record["seconds"]
    assert first == second
    for emitted in (one, two):
        losses = {(e["what"], e["step"], e["values"]["loss"]) for e in emitted if e["event"] == "metric"}
        assert len(losses) == 2 * 8 and {what for what, _, _ in losses} == {"delta seed=0", "delta seed=1"}
        for name in ("delta seed=0", "delta seed=1"):
            own = [e for e in emitted if name in (e.get("what"), e.get("case"))]
            assert (own[0]["event"], own[-1]["event"]) == ("progress", "measurement")
    assert [e for e in one if e["event"] == "metric"] == sorted(
        (e for e in two if e["event"] == "metric"), key=lambda e: (e["what"], e["step"])
    )


def test_a_learning_rate_that_diverges_leaves_the_others(synthe: Run) -> None:
    done = synthe("bench", *SMALL, "--layer", "mlp", "--steps", 8, "--sweep", "lr=1e-3,1e30")
    assert done.exit_code == 1
    assert re.search(r"^warning: mlp lr=1e\+30: the gradient is not finite at step \d; the trial", done.stderr, re.M)
    assert "mlp lr=1e+30  ended failed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("mlp ")
    assert done.stderr.splitlines()[-2:] == ["error: 1 of 2 trials failed", "hint: see the lines above"]
    assert len(saved_records()) == 1


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["mqr"], "unknown task 'mqr'", "did you mean 'mqar'?"),
        (["mqar", "--layer", "delat"], "unknown learner 'delat'", "did you mean 'delta'?"),
        (["mqar", "--layer", "conv,atention"], "unknown learner 'atention'", "did you mean 'attention'?"),
        (["mqar", "--pears", "3"], "'--pears'", "did you mean '--pairs'?"),
        (["mqar", "--fail-undr", "0.5"], "unknown option '--fail-undr'", "did you mean '--fail-under'?"),
        (["mqar", "--set", "learner.beta_range=3"], "learner.beta_range", "lists every key"),
        (["mqar", "--sweep", "width=1.5"], "1.5 is not a whole number", ""),
        (["mqar", "--csv", "missing/table.csv"], "no such folder: 'missing'", "create it first"),
        (["mqar", "--set", "learner.head=3"], "unknown key of delta 'head'", "did you mean 'heads'?"),
        (["mqar", "--set", "heads=3"], "--set heads: expected learner.KEY or task.KEY", "learner.heads=4"),
        (["mqar", "--preset", "quik"], "unknown preset 'quik'", "did you mean 'quick'?"),
        (["mqar", "--launcher", "slrm"], "unknown launcher 'slrm'", "did you mean 'slurm'?"),
        (["mqar", "--sweep", "lrr=1"], "unknown key to sweep 'lrr'", "did you mean 'lr'?"),
        (["mqar", "--sweep", "lr=fast"], "--sweep lr: 'fast' is not a number", ""),
        (["mqar", "--recipe", "tyni"], "no such recipe: 'tyni'", "did you mean"),
        (["mqar", "--pairs", "20", "--vocab", "32", "--length", "128"], "a vocabulary of 32 holds too few", ""),
        (
            ["mqar", "--pairs", "20", "--vocab", "64"],
            "do not fit into 64 tokens",
            "the smallest length that fits is 80",
        ),
        (["mqar", "--width", "33", "--set", "learner.heads=4"], "not divisible by heads 4", "heads: 3"),
        (["state-tracking", "--group", "S9"], "unknown group 'S9'", "S3 … S5"),
        (["mqar", "--out", "file"], "file is a file", "--out names a folder"),
        (["mqar", "--lr", "0"], "greater than 0", ""),
        (["mqar", "--pairs"], "--pairs needs a value", ""),
    ],
)
def test_invalid_arguments(synthe: Run, arguments: list[str], message: str, hint: str) -> None:
    Path("file").touch()
    done = synthe("bench", *arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.stderr
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: ") and message in first
    assert len(rest) <= 1 and hint in "".join(rest)
    assert not Path("runs").exists()


@pytest.mark.parametrize(("launcher", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_that_is_not_installed(
    synthe: Run, monkeypatch: pytest.MonkeyPatch, launcher: str, module: str
) -> None:
    monkeypatch.setattr("synthe_core.benchmarks.synthetic.launch.find_spec", lambda name: None)
    done = synthe("bench", *QUICK, "--launcher", launcher)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"error: --launcher {launcher} needs {module}",
        f"hint: pip install {module}, or 'synthe[cluster]'",
    ]


def test_a_folder_that_cannot_be_written(synthe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    done = synthe("bench", *QUICK, "--out", "file/below")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: file/below could not be written: Not a directory\n")
    monkeypatch.setattr(sweeps.os, "access", lambda path, mode: mode != os.W_OK)
    done = synthe("bench", *QUICK, "--out", "o")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: o could not be written: it is read-only\n")


def test_slurm_without_sbatch(synthe: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthe_core.benchmarks.synthetic.launch.find_spec", lambda name: name)
    monkeypatch.setenv("PATH", "")
    done = synthe("bench", *QUICK, "--launcher", "slurm")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --launcher slurm: `sbatch` is not found\nhint: ")

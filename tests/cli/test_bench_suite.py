"""`synthe bench zoology`: several learners on several tasks, one table and one report."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthe_core.benchmarks.synthetic import plan
from synthe_core.layers import LAYERS
from synthe_core.tasks import TASKS

Run = Callable[..., Any]
SMALL = ("--steps", 1, "--width", 32)


def test_one_table_and_one_report(synthe: Run, tmp_path: Path) -> None:
    out = tmp_path / "suite"
    chosen = ("--task", "parity", "--task", "stack", "--layer", "conv", "--layer", "mlp", "--out", out)
    result = synthe("bench", "zoology", *chosen, *SMALL, "--csv", tmp_path / "all.csv")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()[-6:]]
    assert lines[0] == ["best", "accuracy", "of", "each", "model"]
    assert lines[1:3] == [["parity", "stack"], ["chance", "50%", "12%"]]
    assert [line[0] for line in lines[3:5]] == ["conv", "mlp"]
    assert lines[5] == [str(out / "report.html")]
    page = (out / "report.html").read_text()
    assert "parity" in page and "stack" in page and "Overview" in page
    with (tmp_path / "all.csv").open() as file:
        assert {(row["task"], row["label"]) for row in csv.DictReader(file)} == {
            (task, label) for task in ("parity", "stack") for label in ("conv", "mlp")
        }
    assert len(list(out.glob("trial-*.json"))) == 4


def test_a_wider_suite_runs_only_new_trials(synthe: Run, tmp_path: Path) -> None:
    first = synthe("bench", "zoology", "--task", "parity", "--layer", "conv", *SMALL, "--out", tmp_path)
    assert first.exit_code == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("trial-*.json")}
    result = synthe(
        "bench", "zoology", "--task", "parity", "--layer", "conv", "--layer", "mlp", *SMALL, "--out", tmp_path, "--json"
    )
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert "1 of 2 trials are done already" in events[0]["message"]
    assert [event["step"] for event in events if event["event"] == "metric"] == [1]  # of the new one
    assert events[-1]["event"] == "result" and len(events[-1]["values"]["trials"]) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_the_whole_suite_is_every_task_with_every_causal_learner() -> None:
    trials = plan.suite([], layers=plan.causal_learners(), width=32)
    causal = {name for name in LAYERS if LAYERS[name].causal}
    assert {(trial.task, trial.label) for trial in trials} == {(task, name) for task in TASKS for name in causal}
    assert {trial.task for trial in plan.suite(plan.CORE, layers=["delta"])} == set(plan.CORE) <= set(TASKS)
    assert len(plan.CORE) == 6


def test_unknown_names_are_refused_before_any_trial(synthe: Run, tmp_path: Path) -> None:
    for words, hint in (
        (("--task", "partiy"), "did you mean 'parity'?"),
        (("--layer", "detla"), "did you mean 'delta'?"),
        (("--preset", "quik"), "did you mean 'quick'?"),
    ):
        result = synthe("bench", "zoology", *words, "--out", tmp_path / "none")
        assert result.exit_code == 2 and hint in result.stderr, result.stderr
    assert not (tmp_path / "none").exists()

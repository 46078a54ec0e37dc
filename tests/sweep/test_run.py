"""A sweep's order, its records, what happens when runs fail or it is stopped, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event as Stop
from typing import Any

import pytest

from synthe_core.errors import InputError, Interrupted, WorkError
from synthe_core.events import Event, Measurement, Notice, Progress, Result
from synthe_core.sweep import run as module
from synthe_core.sweep.folder import SweepFolder, outcome, read_records
from synthe_core.sweep.grid import PlannedRun, parse_axis, plan_runs
from synthe_core.sweep.run import ranked, sweep
from synthe_core.sweep.schedule import SweepProgress, run_costs
from tests.sweep.recipes import write_recipe


class FakeJob:
    """A run that ends with a code after some looks at it; never with None."""

    def __init__(self, code: int | None, looks: int = 2) -> None:
        self.code, self.looks, self.stopped, self.killed = code, looks, False, False

    def poll(self) -> int | None:
        if self.killed:
            return -9
        if self.stopped and self.looks >= 0:
            return 130
        self.looks -= 1
        return self.code if self.looks <= 0 else None

    def events(self) -> list[Event]:
        return []

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.killed = True


class FakeLauncher:
    def __init__(self, at_once: int, job: Callable[[str], FakeJob]) -> None:
        self.at_once: int | None = at_once
        self.job, self.started, self.closed = job, list[str](), False
        self.jobs: dict[str, FakeJob] = {}
        self.most = 0

    def start(self, sweep: Path, name: str, log: Path) -> FakeJob:
        self.started.append(name)
        self.jobs[name] = self.job(name)
        running = [job for job in self.jobs.values() if job.looks > 0 and not job.stopped]
        self.most = max(self.most, len(running))
        return self.jobs[name]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    return plan_runs([("small", write_recipe(tmp_path))], [parse_axis("seed=0,1,2,3")])


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeLauncher]:
    """Puts a launcher of fake jobs in place; the loss of `seed=N` is (N - 2)²."""
    monkeypatch.setattr(module, "POLL", 0.0)
    monkeypatch.setattr(module, "outcome", lambda run: {"loss": (int(run.name[-1]) - 2) ** 2, "steps": 4})

    def put(job: Callable[[str], FakeJob] = lambda name: FakeJob(0), at_once: int = 2) -> FakeLauncher:
        launcher = FakeLauncher(at_once, job)
        monkeypatch.setattr(module, "open_launcher", lambda *_: launcher)
        return launcher

    return put


def test_runs_go_on_together_and_are_ranked(tmp_path: Path, runs: list[PlannedRun], launch: Any) -> None:
    launcher = launch()
    *events, result = sweep(runs, out=tmp_path / "out")
    assert launcher.started == [f"seed={n}" for n in range(4)]
    assert launcher.most == 2 and launcher.closed
    assert isinstance(result, Result) and result.path == tmp_path / "out" / "seed=2"
    assert [each["name"] for each in result.values["runs"]] == ["seed=2", "seed=1", "seed=3", "seed=0"]  # type: ignore[attr-defined]
    ends = [event for event in events if isinstance(event, Measurement)]
    assert [event.values["ended"] for event in ends] == ["finished"] * 4
    progress = [event for event in events if isinstance(event, Progress)]
    assert (progress[0].done, progress[-1].done, progress[-1].total) == (0, 4, 4)
    manifest = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [each["status"] for each in manifest["runs"]] == ["finished"] * 4


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path, runs: list[PlannedRun], launch: Any) -> None:
    def job(name: str) -> FakeJob:
        if name == "seed=1":
            (tmp_path / "out/logs/seed=1.log").write_text("loading\nerror: no such data\nhint: another\n")
        return FakeJob({"seed=1": 2, "seed=3": -9}.get(name, 0))

    launch(job)
    *events, result = sweep(runs, out=tmp_path / "out")
    assert [event.message for event in events if isinstance(event, Notice)] == [
        f"seed=1 failed: no such data; its log is {tmp_path}/out/logs/seed=1.log",
        f"seed=3 failed: ended by signal 9; its log is {tmp_path}/out/logs/seed=3.log",
    ]
    assert isinstance(result, Result)
    records: Any = result.values["runs"]
    assert [(each["name"], each["status"]) for each in records] == [
        ("seed=2", "finished"), ("seed=0", "finished"), ("seed=1", "failed"), ("seed=3", "failed")
    ]  # fmt: skip


def test_the_same_sweep_goes_on(tmp_path: Path, runs: list[PlannedRun], launch: Any) -> None:
    launch(lambda name: FakeJob(1 if name == "seed=1" else 0))
    list(sweep(runs[:3], out=tmp_path / "out"))
    again = launch()
    *events, _ = sweep(runs, out=tmp_path / "out")
    assert again.started == ["seed=1", "seed=3"]
    assert [event.message for event in events if isinstance(event, Notice)] == [
        f"2 of 4 runs are done already: {tmp_path / 'out'}"
    ]
    assert {record.name: record.attempts for record in read_records(tmp_path / "out")} == {
        "seed=0": 1, "seed=1": 2, "seed=2": 1, "seed=3": 1
    }  # fmt: skip
    nothing = launch()
    list(sweep(runs, out=tmp_path / "out"))
    assert nothing.started == []


def test_a_stopped_sweep_has_its_runs_save(tmp_path: Path, runs: list[PlannedRun], launch: Any) -> None:
    stop = Stop()

    def job(name: str) -> FakeJob:
        if name == "seed=1":
            stop.set()
        return FakeJob(0, looks=1 if name == "seed=0" else 10**6)

    launcher = launch(job)
    with pytest.raises(Interrupted, match="stopped with 1 of 4 runs finished"):
        list(sweep(runs, out=tmp_path / "out", stop=stop))
    assert launcher.jobs["seed=1"].stopped and not launcher.jobs["seed=1"].killed
    statuses = [record.status for record in read_records(tmp_path / "out")]
    assert statuses == ["finished", "interrupted", "waiting", "waiting"]
    again = launch()
    list(sweep(runs, out=tmp_path / "out"))
    assert again.started == ["seed=1", "seed=2", "seed=3"]


def test_a_run_that_does_not_stop_is_killed(
    tmp_path: Path, runs: list[PlannedRun], launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVING", -1.0)
    stop = Stop()
    stop.set()
    launcher = launch(lambda name: FakeJob(None, looks=-1))
    with pytest.raises(Interrupted):
        list(sweep(runs, out=tmp_path / "out", stop=stop))
    assert all(job.killed for job in launcher.jobs.values())


def test_what_is_no_sweep_is_refused(tmp_path: Path, runs: list[PlannedRun], launch: Any) -> None:
    launch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(InputError, match="is not empty, and no sweep"):
        list(sweep(runs, out=tmp_path / "other"))
    list(sweep(runs[:1], out=tmp_path / "out"))
    changed = [PlannedRun(run.name, run.recipe.with_batch(3)) for run in runs]
    with pytest.raises(InputError, match="seed=0 is a run of another recipe"):
        list(sweep(changed, out=tmp_path / "out"))
    (tmp_path / "out" / "sweep.json").write_text("[]")
    with pytest.raises(InputError):
        list(sweep(runs, out=tmp_path / "out"))


def test_a_run_without_a_checkpoint_has_no_outcome(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="has no checkpoint"):
        outcome(tmp_path)


def test_the_best_comes_first_whatever_is_best(tmp_path: Path, runs: list[PlannedRun]) -> None:
    folder = SweepFolder.prepare(tmp_path / "out", runs)
    values = [{"loss": 3.0, "accuracy": 0.5}, {"loss": float("nan")}, {"loss": 2.0, "accuracy": 0.1}]
    for run, each in zip(runs, values, strict=False):
        folder.set(run.name, "finished", values=each)
    records = list(folder.records.values())
    assert [each.name for each in ranked(records, "loss")] == ["seed=2", "seed=0", "seed=1", "seed=3"]
    assert [each.name for each in ranked(records, "accuracy")] == ["seed=0", "seed=2", "seed=1", "seed=3"]


def test_the_rest_takes_as_long_as_its_share() -> None:
    progress = SweepProgress({"a": 1.0, "b": 3.0, "c": 4.0}, ["a"], now=100.0)
    assert progress.event(1, 100.0).eta is None
    progress.see("b", Progress("b", 0, 10, "steps"))
    progress.see("b", Progress("b", 5, 10, "steps"))
    assert progress.event(1, 130.0).eta == pytest.approx(30 * (1.5 + 4.0) / 1.5)
    progress.end("b")
    assert progress.event(2, 160.0) == Progress("sweep", 2, 3, "runs", pytest.approx(60 * 4 / 3))


def test_a_resumed_run_counts_from_where_it_was() -> None:
    progress = SweepProgress({"a": 1.0}, [], now=0.0)
    progress.see("a", Progress("a", 8, 10, "steps"))  # what an earlier session did
    progress.see("a", Progress("a", 9, 10, "steps"))
    assert progress.event(0, 5.0).eta == pytest.approx(5.0)


def test_costs_are_flops_of_tokens_and_steps(runs: list[PlannedRun], tmp_path: Path) -> None:
    longer = plan_runs([("small", tmp_path / "small.yaml")], [parse_axis("train.budget=4steps,256tokens,1m")])
    costs = run_costs(longer[:2])
    assert costs["budget=256tokens"] == pytest.approx(2 * costs["budget=4steps"])
    assert set(run_costs(longer).values()) == {1.0}
    assert run_costs(longer[2:]) == {"budget=1m": 60.0}

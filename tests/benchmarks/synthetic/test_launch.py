"""Trials in other processes, and through the engines of clusters where these are installed."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from threading import Event as Stop
from typing import Any

import pytest

import synthe_core
from synthe_core.benchmarks.synthetic import launch, sweep
from synthe_core.benchmarks.synthetic.plan import trials
from synthe_core.benchmarks.synthetic.trial import Trial
from synthe_core.errors import WorkError
from synthe_core.events import Event, Measurement, Notice, Result
from tests.paths import ROOT


def small(**more: Any) -> list[Trial]:
    sizes = {"vocab": 16, "length": 16, "pairs": 2}
    return trials("mqar", **{"layers": ["delta"], "settings": sizes, "steps": 3, "width": 32, "seeds": 2, **more})


def died(trial: Trial, device: str, name: str) -> dict[str, Any]:
    os._exit(1)


class Unlucky:
    """An engine whose first job is lost, and whose second could not do its work."""

    def start(self, work: Any, calls: list[Any]) -> list[Future[Any]]:
        lost, failed = Future[Any](), Future[Any]()
        lost.set_exception(ValueError("the node\nis gone"))
        failed.set_result({"failed": "an error of the job"})
        return [lost, failed]

    def drain_events(self) -> list[Event]:
        return []

    def close(self) -> None: ...


def done(events: list[Event]) -> list[dict[str, Any]]:
    assert isinstance(events[-1], Result)
    records: Any = events[-1].values["trials"]
    return [{key: value for key, value in each.items() if key != "seconds"} for each in records]


@pytest.fixture
def expected(tmp_path: Path) -> list[dict[str, Any]]:
    return done(list(sweep.sweep(small(), out=tmp_path / "expected")))


def test_a_process_that_dies_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "run_trial", died)
    with pytest.raises(WorkError, match="a process of the sweep has died"):
        list(sweep.sweep(small(), out=tmp_path, jobs=2))


def test_a_lost_job_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "open_launcher", lambda *_: Unlucky())
    events = list(sweep.sweep(small(), out=tmp_path, jobs=2))
    assert [event.message for event in events if isinstance(event, Notice)] == [
        "delta seed=0: ValueError: the node; the trial is left out",
        "an error of the job; the trial is left out",
    ]
    assert [event.values for event in events if isinstance(event, Measurement)] == 2 * [{"ended": "failed"}]
    assert done(events) == []


def test_an_exception_in_a_trial_is_returned_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise TypeError("no such thing\nat all")

    monkeypatch.setattr(sweep, "run", broken)
    assert sweep.run_trial(small()[0], "cpu", "delta") == {"failed": "delta: TypeError: no such thing"}


def test_out_of_memory_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sweep.run

    def full(trial: Trial, *rest: Any) -> Any:
        if trial.seed == 0:
            raise MemoryError
        return real(trial, *rest)

    monkeypatch.setattr(sweep, "run", full)
    events = list(sweep.sweep(small(), out=tmp_path))
    (message,) = (event.message for event in events if isinstance(event, Notice))
    assert message == "delta seed=0: out of memory; the trial is left out"
    assert [record["trial"]["seed"] for record in done(events)] == [1]


def test_records_of_another_version_are_reused_with_a_warning(tmp_path: Path) -> None:
    list(sweep.sweep(small(), out=tmp_path))
    path = min(tmp_path.glob("trial-*.json"))
    path.write_text(path.read_text().replace(f'"version": "{synthe_core.__version__}"', '"version": "0.0.7"'))
    first, second, *_ = sweep.sweep(small(), out=tmp_path)
    assert first == Notice(f"2 of 2 trials are done already: {tmp_path}")
    assert isinstance(second, Notice) and second.level == "warning" and "by synthe 0.0.7;" in second.message


def test_trial_names_are_distinct() -> None:
    assert sweep.trial_names(small(seeds=1)) == ["delta"]
    several = small(layers=["delta", "conv,attention"], swept={"lr": [1e-3, 1e-2]}, seeds=1)
    assert sweep.trial_names(several) == [
        *("delta lr=0.001", "conv,attention lr=0.001"),
        *("delta lr=0.01", "conv,attention lr=0.01"),
    ]
    tasks = small(seeds=1) + trials("parity", layers=["delta"], steps=3, width=32)
    assert [name.split()[:2] for name in sweep.trial_names(tasks)] == [["mqar", "delta"], ["parity", "delta"]]
    wide, narrow = (small(seeds=1, learner={"heads": heads})[0] for heads in (1, 2))
    assert sweep.trial_names([wide, narrow]) == [f"delta {wide.digest()}", f"delta {narrow.digest()}"]


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes find these packages, as they do where synthe is installed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_ray_gives_the_same(tmp_path: Path, paths: None, expected: list[dict[str, Any]]) -> None:
    pytest.importorskip("ray")
    events = list(sweep.sweep(small(), out=tmp_path / "out", launcher="ray"))
    assert done(events) == expected
    assert len(list((tmp_path / "out").glob("trial-*.json"))) == 2


def through_submitit(monkeypatch: pytest.MonkeyPatch, cluster: str) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(sweep, "check_launcher", lambda launcher: None)
    monkeypatch.setattr(
        sweep, "open_launcher", lambda name, jobs, out, device: launch.Slurm(jobs, out, device, cluster)
    )


def test_submitit_gives_the_same(
    tmp_path: Path, paths: None, monkeypatch: pytest.MonkeyPatch, expected: list[dict[str, Any]]
) -> None:
    through_submitit(monkeypatch, "local")
    assert done(list(sweep.sweep(small(), out=tmp_path / "out", launcher="slurm"))) == expected


def test_a_job_that_dies_does_not_hang_the_others(tmp_path: Path, paths: None, monkeypatch: pytest.MonkeyPatch) -> None:
    through_submitit(monkeypatch, "local")
    monkeypatch.setattr(sweep, "run_trial", died)
    events = list(sweep.sweep(small(), out=tmp_path, launcher="slurm"))
    assert sum("the trial is left out" in event.message for event in events if isinstance(event, Notice)) == 2
    assert done(events) == []


def test_an_interruption_cancels_the_jobs(tmp_path: Path, paths: None, monkeypatch: pytest.MonkeyPatch) -> None:
    through_submitit(monkeypatch, "local")
    stop, cancelled = Stop(), []
    real = launch.Slurm.close

    def close(self: Any) -> None:
        real(self)
        cancelled.extend(job.job_id for job in self._jobs)
        assert all(job.wait() is None and job.done() for job in self._jobs)

    monkeypatch.setattr(launch.Slurm, "close", close)
    stop.set()
    with pytest.raises(sweep.Interrupted, match="stopped with 0 of 2 trials finished"):
        for _ in sweep.sweep(small(), out=tmp_path, launcher="slurm", stop=stop):
            pass
    assert len(cancelled) == 2

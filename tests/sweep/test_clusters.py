"""Runs on clusters: what a job does, and what is read of it; real engines where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from synthe_core.events import Metric, Progress
from synthe_core.sweep import clusters
from synthe_core.sweep.clusters import MetricsTail, TrainingTask

LINE = '{{"step": {}, "phase": "train", "loss": 2.0, "fraction": {}}}\n'


def test_metrics_are_read_as_they_are_written(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(LINE.format(1, 0.1))
    tail = MetricsTail("a", tmp_path)
    assert tail.events() == []  # what was there before
    with metrics.open("a") as file:
        file.write(LINE.format(2, 0.2) + "not json\n" + LINE.format(3, 0.3)[:20])
    assert tail.events() == [Metric(2, "train", {"loss": 2.0, "fraction": 0.2}, "a"), Progress("a", 2, 10, "steps")]
    with metrics.open("a") as file:
        file.write(LINE.format(3, 0.3)[20:])
    assert [type(event) for event in tail.events()] == [Metric, Progress]
    metrics.write_text(LINE.format(1, 0.1))  # the run goes on from an earlier checkpoint
    assert tail.events()[1] == Progress("a", 1, 10, "steps")


def test_a_task_trains_in_a_process_and_returns_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = "import sys; print('error: no', file=sys.stderr); sys.exit(7)"
    monkeypatch.setattr(clusters, "synthe_command", lambda arguments: [sys.executable, "-c", program])
    assert TrainingTask(Path("sweep"), "a", Path("log"))() == 7
    assert (tmp_path / "log").read_text() == "error: no\n"


def test_a_cancelled_task_saves_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        signals: list[int] = []  # noqa: RUF012 (of one test)

        def __init__(self, *_: Any, **__: Any) -> None:
            self.waits = 0

        def wait(self, timeout: float | None = None) -> int:
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt
            return 130

        def poll(self) -> int | None:
            return None

        def send_signal(self, number: int) -> None:
            self.signals.append(number)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clusters.subprocess, "Popen", Process)
    with pytest.raises(KeyboardInterrupt):
        TrainingTask(Path("sweep"), "a", Path("log"))()
    assert Process.signals == [clusters.signal.SIGTERM]

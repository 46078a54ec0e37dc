"""Runs as processes: their events, their log, and how they are stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from synthe_core.errors import WorkError
from synthe_core.events import Metric, Notice, Progress
from synthe_core.sweep import jobs
from synthe_core.sweep.folder import last_error
from synthe_core.sweep.jobs import LocalJob, LocalJobs, parse_event, visible_gpus

LIMIT = 60.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def job(tmp_path: Path, program: str) -> LocalJob:
    return LocalJob("a", [sys.executable, "-c", program], tmp_path / "log", os.environ)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            b'{"event": "progress", "what": "train", "done": 1, "total": 4, "unit": "steps", "eta": 2.5}',
            Progress("a", 1, 4, "steps", 2.5),
        ),
        (
            b'{"event": "metric", "step": 3, "phase": "train", "values": {"loss": 2.0, "x": null}, "what": ""}',
            Metric(3, "train", {"loss": 2.0}, "a"),
        ),
        (b'{"event": "notice", "message": "slow", "level": "warning"}', Notice("a: slow", "warning")),
        (b'{"event": "notice", "message": "hello", "level": "info"}', None),
        (b'{"event": "progress", "what": "validate", "done": 1, "total": 4, "unit": "", "eta": null}', None),
        (b"not json", None),
        (b"[1]", None),
        (b'{"event": "progress"}', None),
    ],
)
def test_lines_are_events_of_the_run(line: bytes, event: object) -> None:
    assert parse_event("a", line) == event


def test_a_process_reports_and_ends(tmp_path: Path) -> None:
    line = '{"event": "metric", "step": 1, "phase": "validation", "values": {"loss": 2.0}}'
    run = job(tmp_path, f"import sys; print('{line}'); print('error: too bad', file=sys.stderr); sys.exit(3)")
    until(lambda: run.poll() is not None)
    assert run.poll() == 3
    assert run.events() == [Metric(1, "validation", {"loss": 2.0}, "a")]
    assert last_error(tmp_path / "log") == "too bad"


def test_a_process_is_stopped_or_killed(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(130));"
        """print('{"event": "notice", "message": "ready", "level": "warning"}', flush=True); time.sleep(600)"""
    )
    saving, other = job(tmp_path, program), job(tmp_path, program)
    until(lambda: bool(saving.events()))
    until(lambda: bool(other.events()))
    saving.stop()
    until(lambda: saving.poll() is not None)
    assert saving.poll() == 130
    other.kill()
    assert other.poll() == -signal.SIGKILL


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="a could not be started"):
        LocalJob("a", [str(tmp_path / "none")], tmp_path / "log", os.environ)


def test_processes_share_cores_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 8)
    show = "import os, sys; e = os.environ; print(e['OMP_NUM_THREADS'], e['CUDA_VISIBLE_DEVICES'], file=sys.stderr)"
    monkeypatch.setattr(jobs, "synthe_command", lambda arguments: [sys.executable, "-c", show])
    engine = LocalJobs(2, gpus=["4", "7"])
    first = engine.start(tmp_path, "a", tmp_path / "a.log")
    second = engine.start(tmp_path, "b", tmp_path / "b.log")
    until(lambda: first.poll() is not None and second.poll() is not None)
    assert {(tmp_path / f"{name}.log").read_text() for name in "ab"} == {"4 4\n", "4 7\n"}
    engine.close()


def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_error(log) is None
    log.write_text("error: first\nhint: no\nerror: second\nhint: yes\n")
    assert last_error(log) == "second"
    log.write_text("Traceback\n  somewhere\nValueError: no\n")
    assert last_error(log) == "ValueError: no"

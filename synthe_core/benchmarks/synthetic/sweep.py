"""Sweeps: many trials, several at once, each stored in a file when it ends, so that an interrupted sweep resumes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from pathlib import Path
from threading import Event as Stop
from typing import Any

import torch

import synthe_core
from synthe_core.benchmarks.synthetic import report
from synthe_core.benchmarks.synthetic.launch import Launcher, Pending, check_launcher, open_launcher, send_event
from synthe_core.benchmarks.synthetic.summary import plain
from synthe_core.benchmarks.synthetic.trial import Trial, run
from synthe_core.errors import InputError, Interrupted, SyntheError, WorkError
from synthe_core.events import Event, Measurement, Notice, Progress, Result, drain
from synthe_core.hardware.placement import choose_device
from synthe_core.hardware.probe import probe
from synthe_core.storage.atomic import failure, write_file

POLL = 0.2  # seconds
GRACE = 1.0  # seconds to wait, after a process died, for the signal that may have ended it
CONTINUE_HINT = "the same command runs the remaining trials"
FAILURES = (SyntheError, MemoryError, torch.OutOfMemoryError)  # of one trial; the others continue


def sweep(
    trials: Sequence[Trial],
    *,
    out: Path,
    jobs: int | None = None,
    device: str = "cpu",
    launcher: str = "local",
    stop: Stop | None = None,
) -> Iterator[Event]:
    """Runs every trial that `out` has no record of; a Measurement for each, and last a Result with all records.

    A trial's events have its name, and it ends with a Measurement. A trial that fails (a loss that is not finite) is
    reported and left out; the others continue. Once `stop` is set, running trials are dropped and Interrupted is
    raised; finished trials are stored. "auto" chooses the device where the trial runs.
    """
    check_launcher(launcher)
    stop = stop or Stop()
    _check_sizes(trials)
    _make_folder(out)
    stored = {trial.digest(): _stored_record(out, trial) for trial in trials}
    records = {digest: record for digest, record in stored.items() if record is not None}
    if records:
        yield Notice(f"{len(records)} of {len(trials)} trials are done already: {out}")
    if others := sorted({record["version"] for record in records.values()} - {synthe_core.__version__}):
        message = f"some of them were measured by synthe {', '.join(others)}; another --out measures them again"
        yield Notice(message, "warning")
    name_of = dict(zip((trial.digest() for trial in trials), trial_names(trials), strict=True))
    waiting = {name_of[trial.digest()]: trial for trial in trials if trial.digest() not in records}
    if len(trials) > 1:
        yield Progress("sweep", len(records), len(trials), "trials")
    here = launcher == "local" and min(jobs or 1, len(waiting)) <= 1
    events: Generator[Event, None, None] = (
        _run_here(waiting, device) if here else _run_elsewhere(waiting, out, jobs, device, launcher, stop)
    )
    started, ended = time.monotonic(), 0
    with closing(events):
        for event in events:
            if isinstance(event, Result):
                record = dict(event.values)
                records[str(record["digest"])] = record
                write_file(out / f"trial-{record['digest']}.json", json.dumps(record, indent=1) + "\n")
                event = measurement(name_of[str(record["digest"])], record)
            yield event
            if isinstance(event, Measurement):
                ended += 1
                left = (len(waiting) - ended) * (time.monotonic() - started) / ended
                if len(trials) > 1:
                    yield Progress("sweep", len(trials) - len(waiting) + ended, len(trials), "trials", left)
            if stop.is_set():
                break
    if ended < len(waiting):
        raise Interrupted(f"stopped with {len(records)} of {len(trials)} trials finished", CONTINUE_HINT)
    yield Result({"trials": [records[t.digest()] for t in trials if t.digest() in records]}, out)


def _check_sizes(trials: Sequence[Trial]) -> None:
    """InputError for impossible sizes of a task or a model, each checked once."""
    distinct = {f"{trial.task} {trial.preset} {trial.settings}": trial for trial in trials}
    distinct |= {trial.model.model_dump_json(): trial for trial in trials}
    for trial in distinct.values():
        trial.check()


def trial_names(trials: Sequence[Trial]) -> list[str]:
    """A name for each: its model, and the settings that differ between trials: `delta lr=0.001 seed=1`."""
    settings = [
        {
            **each.settings,
            "width": each.model.width,
            "blocks": each.model.blocks,
            **each.model_dump(exclude=_NOT_IN_SETTINGS),
        }
        for each in trials
    ]
    varied = [key for key in dict.fromkeys(key for each in settings for key in each) if _varies(settings, key)]
    tasks = len({trial.task for trial in trials}) > 1
    names = []
    for trial, values in zip(trials, settings, strict=True):
        parts = [trial.task] if tasks or not trial.label else []
        parts += [trial.label] if trial.label else []
        names.append(" ".join([*parts, *(f"{key}={plain(values[key])}" for key in varied if key in values)]))
    return [f"{n} {t.digest()}" if names.count(n) > 1 else n for n, t in zip(names, trials, strict=True)]


_NOT_IN_SETTINGS = {"task", "settings", "model", "label"}


def _varies(settings: list[dict[str, Any]], key: str) -> bool:
    return len({json.dumps(each.get(key)) for each in settings}) > 1


def measurement(name: str, record: dict[str, Any]) -> Measurement:
    """A trial in one line."""
    keys = ("accuracy", "chance", "state_bytes", "parameters", "steps", "ended", "seconds")
    return Measurement(name, {key: record[key] for key in keys})


def _failed(name: str, reason: str) -> list[Event]:
    return [Notice(f"{reason}; the trial is left out", "warning"), Measurement(name, {"ended": "failed"})]


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, SyntheError):
        return error.message
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"{name}: out of memory"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{name}: {type(error).__name__}: {first}"


def _run_here(waiting: dict[str, Trial], device: str) -> Generator[Event, None, None]:
    for name, trial in waiting.items():
        try:
            yield from run(trial, _device(device), name)
        except FAILURES as error:
            yield from _failed(name, _reason(name, error))


def run_trial(trial: Trial, device: str, name: str) -> dict[str, Any]:
    """A trial in a process of its own: its record, or {"failed": reason}."""
    try:
        return dict(drain(run(trial, _device(device), name), send_event).values)
    except Exception as error:  # as text: each engine wraps exceptions in its own
        return {"failed": _reason(name, error)}


def _device(name: str) -> str:
    return choose_device(name, probe()).value if name == "auto" else name


def _run_elsewhere(
    waiting: dict[str, Trial], out: Path, jobs: int | None, device: str, launcher: str, stop: Stop
) -> Generator[Event, None, None]:
    if not waiting:
        return
    at_once = min(jobs, len(waiting)) if jobs else None
    engine: Launcher = open_launcher(launcher, at_once, out, device)
    try:
        started = engine.start(run_trial, [(trial, device, name) for name, trial in waiting.items()])
        pending = dict(zip(waiting, started, strict=True))
        while pending and not stop.is_set():
            time.sleep(POLL)  # not stop.wait: a signal handler that sets `stop` could deadlock with it
            done = [name for name, each in pending.items() if each.done()]
            yield from engine.drain_events()
            for name in done:
                yield from _outcome(name, pending.pop(name), stop)
    finally:
        engine.close()


def _outcome(name: str, ended: Pending, stop: Stop) -> list[Event]:
    try:
        record = ended.result()
    except BrokenExecutor:
        time.sleep(GRACE)
        if stop.is_set():  # the signal that ended the process was for all of them
            return []
        raise WorkError("a process of the sweep has died, most likely because memory ran out", CONTINUE_HINT) from None
    except Exception as error:  # an engine's error for a job that was killed or whose machine is lost
        return _failed(name, _reason(name, error))
    return _failed(name, record["failed"]) if "failed" in record else [Result(record)]


def _make_folder(out: Path) -> None:
    """Makes the folder of the records; an error before any work if it cannot be written."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", "--out names a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failure(out, error) from error
    if not os.access(out, os.W_OK):
        raise WorkError(f"{out} could not be written: it is read-only", "--out trial_names another folder")


def _stored_record(out: Path, trial: Trial) -> dict[str, Any] | None:
    """The record of a finished trial; None if there is none, or if it is damaged or of another trial."""
    digest = trial.digest()
    try:
        record = report.read(out / f"trial-{digest}.json")
    except InputError:
        return None
    return record | {"trial": trial.model_dump(mode="json")} if record["digest"] == digest else None

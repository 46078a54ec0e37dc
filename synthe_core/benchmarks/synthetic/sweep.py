"""Many trials: several at once, each kept in a file when it is finished, so that an interrupted sweep goes on."""

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
from synthe_core.benchmarks.synthetic.launch import Launcher, Pending, check, open_launcher, tell
from synthe_core.benchmarks.synthetic.summary import plain
from synthe_core.benchmarks.synthetic.trial import Trial, run
from synthe_core.errors import InputError, Interrupted, SyntheError, WorkError
from synthe_core.events import Event, Measurement, Notice, Progress, Result, drain
from synthe_core.hardware.placement import choose_device
from synthe_core.hardware.probe import probe
from synthe_core.storage.atomic import failure, write_file

POLL = 0.2  # seconds
GRACE = 1.0  # seconds from the death of a process to a signal that may have been its cause
GOES_ON = "the same command goes on with the trials that are left"
FAILURES = (SyntheError, MemoryError, torch.OutOfMemoryError)  # of one trial, while others may do


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

    A trial's events bear its name, as the Measurement does that ends it. One that fails (a loss that is not finite) is
    told, ends with a Measurement of nothing else, and is left out; the others go on. Once `stop` is set, what is under
    way is dropped and Interrupted raised: finished trials are kept. `device` may be "auto", which is chosen where the
    trial runs.
    """
    check(launcher)
    stop = stop or Stop()
    apart = {f"{trial.task} {trial.preset} {trial.settings}": trial for trial in trials}
    apart |= {trial.model.model_dump_json(): trial for trial in trials}
    for trial in apart.values():
        trial.check()  # impossible sizes, before any work
    _make(out)
    records = {trial.digest(): found for trial in trials if (found := _kept(out, trial)) is not None}
    if records:
        yield Notice(f"{len(records)} of {len(trials)} trials are done already: {out}")
    if others := sorted({record["version"] for record in records.values()} - {synthe_core.__version__}):
        told = f"some of them were measured by synthe {', '.join(others)}; another --out measures them anew"
        yield Notice(told, "warning")
    called = dict(zip((trial.digest() for trial in trials), names(trials), strict=True))
    waiting = {called[trial.digest()]: trial for trial in trials if trial.digest() not in records}
    if len(trials) > 1:
        yield Progress("sweep", len(records), len(trials), "trials")
    alone = launcher == "local" and min(jobs or 1, len(waiting)) <= 1
    events: Generator[Event, None, None] = (
        _inline(waiting, device) if alone else _spread(waiting, out, jobs, device, launcher, stop)
    )
    began, over = time.monotonic(), 0
    with closing(events):
        for event in events:
            if isinstance(event, Result):
                record = dict(event.values)
                records[str(record["digest"])] = record
                write_file(out / f"trial-{record['digest']}.json", json.dumps(record, indent=1) + "\n")
                event = measurement(called[str(record["digest"])], record)
            yield event
            if isinstance(event, Measurement):
                over += 1
                left = (len(waiting) - over) * (time.monotonic() - began) / over
                if len(trials) > 1:
                    yield Progress("sweep", len(trials) - len(waiting) + over, len(trials), "trials", left)
            if stop.is_set():
                break
    if over < len(waiting):
        raise Interrupted(f"stopped with {len(records)} of {len(trials)} trials finished", GOES_ON)
    yield Result({"trials": [records[t.digest()] for t in trials if t.digest() in records]}, out)


def names(trials: Sequence[Trial]) -> list[str]:
    """What to call each: its model, and what is not the same in all of them: `delta lr=0.001 seed=1`."""
    told = [
        {**each.settings, "width": each.model.width, "blocks": each.model.blocks, **each.model_dump(exclude=_ELSEWHERE)}
        for each in trials
    ]
    varied = [key for key in dict.fromkeys(key for each in told for key in each) if _varies(told, key)]
    tasks = len({trial.task for trial in trials}) > 1
    found = []
    for trial, values in zip(trials, told, strict=True):
        parts = [trial.task] if tasks or not trial.label else []
        parts += [trial.label] if trial.label else []
        found.append(" ".join([*parts, *(f"{key}={plain(values[key])}" for key in varied if key in values)]))
    return [f"{n} {t.digest()}" if found.count(n) > 1 else n for n, t in zip(found, trials, strict=True)]


_ELSEWHERE = {"task", "settings", "model", "label"}


def _varies(told: list[dict[str, Any]], key: str) -> bool:
    return len({json.dumps(each.get(key)) for each in told}) > 1


def measurement(name: str, record: dict[str, Any]) -> Measurement:
    """A trial in one line."""
    keys = ("accuracy", "chance", "state_bytes", "parameters", "steps", "ended", "seconds")
    return Measurement(name, {key: record[key] for key in keys})


def _failed(name: str, why: str) -> list[Event]:
    return [Notice(f"{why}; the trial is left out", "warning"), Measurement(name, {"ended": "failed"})]


def _why(name: str, error: Exception) -> str:
    if isinstance(error, SyntheError):
        return error.message
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"{name}: out of memory"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{name}: {type(error).__name__}: {first}"


def _inline(waiting: dict[str, Trial], device: str) -> Generator[Event, None, None]:
    for name, trial in waiting.items():
        try:
            yield from run(trial, _device(device), name)
        except FAILURES as error:
            yield from _failed(name, _why(name, error))


def finish(trial: Trial, device: str, name: str) -> dict[str, Any]:
    """A whole trial, in a process of its own: its record, or {"failed": why}."""
    try:
        return dict(drain(run(trial, _device(device), name), tell).values)
    except Exception as error:  # in words, as each engine wraps errors in its own
        return {"failed": _why(name, error)}


def _device(name: str) -> str:
    return choose_device(name, probe()).value if name == "auto" else name


def _spread(
    waiting: dict[str, Trial], out: Path, jobs: int | None, device: str, launcher: str, stop: Stop
) -> Generator[Event, None, None]:
    if not waiting:
        return
    at_once = min(jobs, len(waiting)) if jobs else None
    engine: Launcher = open_launcher(launcher, at_once, out, device)
    try:
        started = engine.start(finish, [(trial, device, name) for name, trial in waiting.items()])
        pending = dict(zip(waiting, started, strict=True))
        while pending and not stop.is_set():
            time.sleep(POLL)  # not stop.wait, which the signal's handler would find locked if it came at a bad time
            done = [name for name, each in pending.items() if each.done()]
            yield from engine.told()
            for name in done:
                yield from _outcome(name, pending.pop(name), stop)
    finally:
        engine.close()


def _outcome(name: str, ended: Pending, stop: Stop) -> list[Event]:
    try:
        record = ended.result()
    except BrokenExecutor:
        time.sleep(GRACE)
        if stop.is_set():  # what ended the process was meant for all of them
            return []
        raise WorkError("a process of the sweep has died, most likely for want of memory", GOES_ON) from None
    except Exception as error:  # whatever an engine says of a job that was killed, or whose machine is gone
        return _failed(name, _why(name, error))
    return _failed(name, record["failed"]) if "failed" in record else [Result(record)]


def _make(out: Path) -> None:
    """The folder of the records; told before any work where it cannot be written."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", "--out names a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failure(out, error) from error
    if not os.access(out, os.W_OK):
        raise WorkError(f"{out} could not be written: it is read-only", "--out names another folder")


def _kept(out: Path, trial: Trial) -> dict[str, Any] | None:
    """The record of a finished trial; one that is damaged, or another's, is made again."""
    digest = trial.digest()
    try:
        record = report.read(out / f"trial-{digest}.json")
    except InputError:
        return None
    return record | {"trial": trial.model_dump(mode="json")} if record["digest"] == digest else None

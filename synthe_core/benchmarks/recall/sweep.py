"""Many trials: several at once, each kept in a file when it is finished, so that an interrupted sweep goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event as Stop
from typing import Any

from synthe_core.atomic import write_file
from synthe_core.benchmarks.recall.launch import Launcher, Pending, check, open_launcher
from synthe_core.benchmarks.recall.trial import Trial, run
from synthe_core.errors import InputError, Interrupted, SyntheError
from synthe_core.events import Event, Measurement, Notice, Progress, Result

POLL = 0.2  # seconds


def sweep(
    trials: list[Trial],
    *,
    out: Path,
    jobs: int = 1,
    device: str = "cpu",
    launcher: str = "local",
    stop: Stop | None = None,
) -> Iterator[Event]:
    """Runs every trial that `out` has no record of; a Measurement for each, and last a Result with all records.

    A trial that fails (a loss that is not finite) is told and left out; the others go on. Once `stop` is set, what is
    under way is dropped and Interrupted raised: finished trials are kept.
    """
    check(launcher)
    stop = stop or Stop()
    for trial in trials:
        trial.shares()  # impossible sizes, before any work
    out.mkdir(parents=True, exist_ok=True)
    records: dict[str, dict[str, Any]] = {}
    for trial in trials:
        if (found := _read(out, trial)) is not None:
            records[trial.digest()] = found
    if records:
        yield Notice(f"{len(records)} of {len(trials)} trials are done already: {out}")
        for record in records.values():
            yield measurement(record)
    waiting = [trial for trial in trials if trial.digest() not in records]
    running = _inline(waiting, device, stop) if jobs == 1 and launcher == "local" else None
    began = time.monotonic()
    for event in running or _spread(waiting, out, jobs, device, launcher, stop):
        if isinstance(event, Result):
            record = dict(event.values)
            records[str(record["digest"])] = record
            write_file(out / f"trial-{record['digest']}.json", json.dumps(record, indent=1) + "\n")
            yield measurement(record)
            spent, done = time.monotonic() - began, len(records) - (len(trials) - len(waiting))
            left = (len(waiting) - done) * spent / done
            yield Progress("sweep", len(records), len(trials), "trials", left)
        else:
            yield event
    yield Result({"trials": [records[t.digest()] for t in trials if t.digest() in records]}, out)


def measurement(record: dict[str, Any]) -> Measurement:
    """A trial in one line."""
    trial = record["trial"]
    values = {
        key: record[key] for key in ("accuracy", "chance", "state_bytes", "parameters", "steps", "ended", "seconds")
    }
    name = trial["label"] or trial["task"]
    return Measurement(f"{trial['task']} {name} lr={trial['lr']:g} seed={trial['seed']}", {"candidate": name, **values})


def _inline(trials: list[Trial], device: str, stop: Stop) -> Iterator[Event]:
    for trial in trials:
        try:
            for event in run(trial, device):
                yield event
                if stop.is_set():
                    raise Interrupted("the sweep was stopped", "the same command goes on with the trials that are left")
        except InputError:
            raise
        except SyntheError as error:
            if isinstance(error, Interrupted):
                raise
            yield Notice(f"{error.message}; the trial is left out", "warning")


def finish(trial: Trial, device: str) -> dict[str, Any]:
    """A whole trial, in a process of its own: its record, or {"failed": why}."""
    try:
        *_, last = run(trial, device)
    except SyntheError as error:
        return {"failed": error.message}
    assert isinstance(last, Result)
    return dict(last.values)


def _spread(trials: list[Trial], out: Path, jobs: int, device: str, launcher: str, stop: Stop) -> Iterator[Event]:
    engine: Launcher = open_launcher(launcher, jobs, out)
    try:
        pending: list[Pending] = [engine.submit(finish, trial, device) for trial in trials]
        while pending:
            if stop.is_set():
                raise Interrupted("the sweep was stopped", "the same command goes on with the trials that are left")
            for each in [p for p in pending if p.done()]:
                pending.remove(each)
                record = each.result()
                if "failed" in record:
                    yield Notice(f"{record['failed']}; the trial is left out", "warning")
                else:
                    yield Result(record)
            yield Progress("trials under way", len(trials) - len(pending), len(trials), "trials")
            time.sleep(POLL)
    finally:
        engine.close()


def _read(out: Path, trial: Trial) -> dict[str, Any] | None:
    """The record of a finished trial; one that cannot be read is run again."""
    try:
        record = json.loads((out / f"trial-{trial.digest()}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record | {"trial": trial.model_dump(mode="json")} if isinstance(record, dict) else None

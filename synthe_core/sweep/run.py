"""The verb `sweep`: trains every run of a grid, several at once, and ranks the results."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from threading import Event as Stop
from typing import Any

from synthe_core.benchmarks.synthetic.launch import check_launcher
from synthe_core.errors import Interrupted, SyntheError
from synthe_core.events import Event, Measurement, Notice, Result
from synthe_core.storage.claim import claim
from synthe_core.sweep.folder import FAILED, FINISHED, INTERRUPTED, RUNNING, RunRecord, SweepFolder, last_error, outcome
from synthe_core.sweep.grid import PlannedRun
from synthe_core.sweep.jobs import STOPPED, Job, Launcher, LocalJobs, visible_gpus
from synthe_core.sweep.schedule import SweepProgress, run_costs

POLL = 0.1  # seconds between looks at the runs
SHOW = 1.0  # seconds between events of the sweep's own progress
SAVING = 120.0  # seconds in which a stopped run has saved
CONTINUE_HINT = "the same command goes on with what is left"
HIGHER_IS_BETTER = ("accuracy",)


def sweep(
    runs: Sequence[PlannedRun],
    *,
    out: Path,
    jobs: int | None = None,
    launcher: str = "local",
    options: Mapping[str, str] | None = None,
    metric: str = "loss",
    stop: Stop | None = None,
) -> Iterator[Event]:
    """Trains `runs` in folders of `out`, at most `jobs` at a time, and yields their events under their names.

    Each run ends with a Measurement. The last event is a Result with the records of the runs, the best by `metric`
    first, and the folder of the best as its path. Runs that an earlier call finished are not trained again, others go
    on from their newest checkpoint. A run that fails ends alone. Once `stop` is set, runs save and Interrupted is
    raised. options: of Slurm, as `partition`.
    """
    stop = stop or Stop()
    check_launcher(launcher)
    with ExitStack() as stack:
        stack.enter_context(claim(out, "sweeping in", parents=True))
        folder = SweepFolder.prepare(out, runs)
        done = [run.name for run in runs if folder.records[run.name].status == FINISHED]
        if done:
            yield Notice(f"{len(done)} of {len(runs)} runs are done already: {out}")
        waiting = [run.name for run in runs if run.name not in done]
        if waiting:
            engine = open_launcher(launcher, min(jobs or 1, len(waiting)), jobs, options or {}, out)
            stack.callback(engine.close)
            progress = SweepProgress(run_costs(runs), done, time.monotonic())
            yield from _Sweep(folder, engine, progress, stop).run(waiting, len(done))
        records = ranked([folder.records[run.name] for run in runs], metric)
        best = records[0] if records and records[0].status == FINISHED else None
        values: dict[str, object] = {"runs": [asdict(record) for record in records], "best": best and best.name}
        yield Result(values, folder.run(best.name) if best else out)


def open_launcher(name: str, local: int, jobs: int | None, options: Mapping[str, str], out: Path) -> Launcher:
    """The launcher by its name: `local` processes here, or `jobs` at a time on a cluster (None: all)."""
    if name == "local":
        return LocalJobs(local, visible_gpus())
    from synthe_core.sweep.clusters import RayJobs, SlurmJobs

    return RayJobs(jobs) if name == "ray" else SlurmJobs(jobs, options, out)


class _Sweep:
    """The runs that go on, and those that wait."""

    def __init__(self, folder: SweepFolder, engine: Launcher, progress: SweepProgress, stop: Stop) -> None:
        self.folder, self.engine, self.progress, self.stop = folder, engine, progress, stop
        self.running: dict[str, Job] = {}

    def run(self, names: Sequence[str], ended: int) -> Generator[Event, None, None]:
        """Runs all of them; raises Interrupted once `stop` is set and they have saved."""
        waiting, shown = list(names), 0.0
        yield self.progress.event(ended, time.monotonic())
        while waiting or self.running:
            while waiting and (self.engine.at_once is None or len(self.running) < self.engine.at_once):
                self._start(waiting.pop(0))
            time.sleep(POLL)  # not stop.wait: a signal handler that sets `stop` could deadlock with it
            for name in list(self.running):
                for event in self._look(name):
                    yield event
                    ended += isinstance(event, Measurement)
                    shown = 0.0 if isinstance(event, Measurement) else shown
            if time.monotonic() - shown >= SHOW:
                shown = time.monotonic()
                yield self.progress.event(ended, shown)
            if self.stop.is_set():
                yield from self._interrupt()
                statuses = [record.status for record in self.folder.records.values()]
                message = f"stopped with {statuses.count(FINISHED)} of {len(statuses)} runs finished"
                raise Interrupted(message, CONTINUE_HINT)

    def _start(self, name: str) -> None:
        record = self.folder.records[name]
        self.folder.set(name, RUNNING, attempts=record.attempts + 1, error=None)
        try:
            self.running[name] = self.engine.start(self.folder.path, name, self.folder.log(name))
        except BaseException:
            self.folder.set(name, INTERRUPTED)
            raise

    def _look(self, name: str) -> Iterator[Event]:
        """What a run reports, and its end."""
        job = self.running[name]
        code = job.poll()
        for event in job.events():
            self.progress.see(name, event)
            yield event
        if code is not None:
            del self.running[name]
            yield from self._end(name, code)

    def _end(self, name: str, code: int) -> Iterator[Event]:
        record = self._record(name, code)
        self.progress.end(name)
        if record.status == FAILED:
            yield Notice(f"{name} failed: {record.error}; its log is {self.folder.log(name)}", "warning")
        yield measurement(record)

    def _record(self, name: str, code: int) -> RunRecord:
        """The record of a run that has ended with an exit code."""
        if code == STOPPED or (code != 0 and self.stop.is_set()):
            return self.folder.set(name, INTERRUPTED)
        if code == 0:
            try:
                return self.folder.set(name, FINISHED, values=outcome(self.folder.run(name)))
            except SyntheError as error:
                return self.folder.set(name, FAILED, error=error.message)
        reason = f"ended by signal {-code}" if code < 0 else last_error(self.folder.log(name)) or f"exit code {code}"
        return self.folder.set(name, FAILED, error=reason)

    def _interrupt(self) -> Iterator[Event]:
        """Has all runs save and end, and waits for that."""
        for job in self.running.values():
            job.stop()
        deadline = time.monotonic() + SAVING
        while self.running:
            for name in list(self.running):
                code = self.running[name].poll()
                if code is None and time.monotonic() > deadline:
                    self.running[name].kill()
                    code = STOPPED
                if code is not None:
                    del self.running[name]
                    yield measurement(self._record(name, code))
            time.sleep(POLL)


def measurement(record: RunRecord) -> Measurement:
    """A run in one line: how it ended, and its figures."""
    keys = ("loss", "bits_per_byte", "accuracy", "steps", "tokens", "parameters", "seconds")
    return Measurement(
        record.name, {"ended": record.status, **{key: record.values[key] for key in keys if key in record.values}}
    )


def ranked(records: Sequence[RunRecord], metric: str) -> list[RunRecord]:
    """The finished runs, the best by `metric` first, those without it after them; then the others."""
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0

    def place(record: RunRecord) -> tuple[bool, bool, float]:
        value: Any = record.values.get(metric)
        known = isinstance(value, (int, float)) and value == value
        return record.status != FINISHED, not known, sign * value if known else 0.0

    return sorted(records, key=place)

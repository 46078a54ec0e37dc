"""The runs of a sweep on a cluster: jobs of Slurm through submitit, or tasks of Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, WorkError
from synthe_core.events import Event, Metric, Progress
from synthe_core.sweep.folder import train_arguments
from synthe_core.sweep.jobs import Job, synthe_command

NOTICE = 120
"""Seconds before the end of a job of Slurm in which its run saves."""
ENDING = 60.0  # seconds in which a run that is stopped has saved


class TrainingTask:
    """Trains a run of a sweep in a process of its own, wherever it is called; returns the exit code.

    It goes on with the run where that has begun, so that a job may be queued again.
    """

    def __init__(self, sweep: Path, name: str, log: Path) -> None:
        self.sweep, self.name, self.log, self.folder = sweep, name, log, Path.cwd()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        command = synthe_command(train_arguments(self.folder / self.sweep, self.name))
        with (self.folder / self.log).open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=log)
            try:
                return self._process.wait()
            except KeyboardInterrupt:  # how Ray cancels a task
                self.end()
                raise

    def end(self) -> None:
        """Has the process save, and waits for its end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=ENDING)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """Saves, and returns what a job that is queued again runs. Called by submitit before the time is up."""
        from submitit.helpers import DelayedSubmission

        self.end()
        return DelayedSubmission(TrainingTask(self.folder / self.sweep, self.name, self.folder / self.log))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}


class MetricsTail:
    """The events of a run on another machine, from the metrics that it writes."""

    def __init__(self, name: str, run: Path) -> None:
        self._name, self._path = name, run / "metrics.jsonl"
        self._place = self._size()

    def events(self) -> list[Event]:
        """Those of the lines since the last call."""
        if self._size() < self._place:  # a run that goes on has dropped lines
            self._place = 0
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                content = file.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._place += len(whole)
        return [event for line in whole.splitlines() for event in self._parsed(line)]

    def _parsed(self, line: bytes) -> list[Event]:
        try:
            entry = json.loads(line)
            step, phase, share = int(entry.pop("step")), str(entry.pop("phase")), float(entry["fraction"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return []
        numbers = {key: float(value) for key, value in entry.items() if isinstance(value, (int, float))}
        total = max(step, round(step / share)) if share > 0 else None
        return [Metric(step, phase, numbers, self._name), Progress(self._name, step, total, "steps")]

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0


class SlurmJobs:
    """Jobs of Slurm, one a run; `jobs` of them at a time, None: as many as Slurm runs.

    options: Slurm's own, as partition, gpus_per_node, or time in minutes. cluster: "local" runs jobs here, for tests.
    """

    def __init__(self, jobs: int | None, options: Mapping[str, str], out: Path, cluster: str = "slurm") -> None:
        import submitit

        self.at_once = jobs
        self._executor = submitit.AutoExecutor(out / "slurm" / "%j", cluster)
        if cluster == "slurm":
            numbers = {key: int(value) if value.isdecimal() else value for key, value in options.items()}
            parameters = {f"slurm_{key}": value for key, value in numbers.items()}
            try:
                self._executor.update_parameters(name="synthe", slurm_signal_delay_s=NOTICE, **parameters)
            except (ValueError, NameError) as error:
                raise InputError(
                    f"Slurm's options: {' '.join(str(error).split())[:300]}", "see sbatch --help"
                ) from error
        else:
            self._executor.update_parameters(timeout_min=60)

    def start(self, sweep: Path, name: str, log: Path) -> Job:
        try:
            job = self._executor.submit(TrainingTask(sweep, name, log))
        except (RuntimeError, OSError) as error:
            raise WorkError(f"Slurm took no job: {' '.join(str(error).split())[:300]}", "is sbatch here?") from error
        return _SlurmJob(job, MetricsTail(name, sweep / name), log)

    def close(self) -> None:
        """Jobs that were not cancelled go on."""


class _SlurmJob:
    def __init__(self, job: Any, tail: MetricsTail, log: Path) -> None:
        self._job, self._tail, self._log = job, tail, log

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except Exception as error:  # submitit's, of a job that was cancelled or lost
            return _lost(self._log, error)

    def events(self) -> list[Event]:
        return self._tail.events()

    def stop(self) -> None:
        self._job.cancel(check=False)

    kill = stop


class RayJobs:
    """Tasks of Ray: of the cluster that RAY_ADDRESS names, else of this machine. A run takes a GPU where there is one,
    else a core."""

    def __init__(self, jobs: int | None) -> None:
        import ray

        self.at_once = jobs
        self._ray = ray
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
        gpu = ray.cluster_resources().get("GPU", 0) > 0
        self._remote = ray.remote(max_retries=0, **({"num_gpus": 1} if gpu else {"num_cpus": 1}))(call)

    def start(self, sweep: Path, name: str, log: Path) -> Job:
        reference = self._remote.remote(TrainingTask(sweep, name, log))
        return _RayJob(self._ray, reference, MetricsTail(name, sweep / name), log)

    def close(self) -> None:
        self._ray.shutdown()


class _RayJob:
    def __init__(self, ray: Any, reference: Any, tail: MetricsTail, log: Path) -> None:
        self._ray, self._reference, self._tail, self._log = ray, reference, tail, log

    def poll(self) -> int | None:
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return int(self._ray.get(self._reference))
        except Exception as error:  # Ray's, of a task that was cancelled or whose machine is lost
            return _lost(self._log, error)

    def events(self) -> list[Event]:
        return self._tail.events()

    def stop(self) -> None:
        self._ray.cancel(self._reference, force=False)

    def kill(self) -> None:
        self._ray.cancel(self._reference, force=True)


def call(task: TrainingTask) -> int:
    """Runs a task: a function that Ray can name."""
    return task()


def _lost(log: Path, error: Exception) -> int:
    """Writes why a job has no result into its log; returns the exit code of a failure."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"error: the job was lost: {type(error).__name__}: {lines[0][:200] if lines else 'no message'}\n")
    return 1

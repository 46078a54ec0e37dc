"""Where the trials of a sweep run: in this process, in several here, or on a cluster through engines that exist."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import torch

from synthe_core.errors import InputError, unknown

EXTRAS = {"ray": "ray", "slurm": "submitit"}
LAUNCHERS = ("local", *EXTRAS)


class Pending(Protocol):
    """A trial under way: a concurrent.futures.Future, or what a cluster's engine has in its place."""

    def done(self) -> bool: ...

    def result(self) -> Any: ...


class Launcher(Protocol):
    """Starts work elsewhere."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Pending: ...

    def close(self) -> None:
        """Stops what is under way."""


def check(launcher: str) -> None:
    """InputError where the launcher is not known, or its engine is not installed."""
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, LAUNCHERS)
    module = EXTRAS.get(launcher)
    if module is not None and find_spec(module) is None:
        raise InputError(f"--launcher {launcher} needs {module}", f"pip install {module}, or 'synthe[cluster]'")


def open_launcher(launcher: str, jobs: int, folder: Path) -> Launcher:
    """The launcher by its name; `jobs` trials at once, logs of a cluster in `folder`."""
    check(launcher)
    return Local(jobs) if launcher == "local" else Ray() if launcher == "ray" else Slurm(jobs, folder)


class Local:
    """Processes of this machine, which share its cores."""

    def __init__(self, jobs: int) -> None:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        self._pool = ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,))

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._pool.submit(work, *arguments)

    def close(self) -> None:
        for process in list((self._pool._processes or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


class Ray:
    """Ray's scheduler: a running cluster where RAY_ADDRESS names one, this machine otherwise."""

    def __init__(self) -> None:
        import ray

        self._ray = ray
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        self._resources = {"num_gpus": 1} if torch.cuda.is_available() else {"num_cpus": 1}

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Pending:
        future: Pending = self._ray.remote(**self._resources)(work).remote(*arguments).future()
        return future

    def close(self) -> None:
        self._ray.shutdown()


class Slurm:
    """Slurm through submitit, one job a trial, at most `jobs` at once; SBATCH_* variables say which partition."""

    def __init__(self, jobs: int, folder: Path) -> None:
        import submitit

        self._executor = submitit.AutoExecutor(folder / "slurm")
        self._executor.update_parameters(name="synthe-bench", slurm_array_parallelism=jobs, timeout_min=24 * 60)
        self._jobs: list[Any] = []

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Pending:
        job: Pending = self._executor.submit(work, *arguments)
        self._jobs.append(job)
        return job

    def close(self) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel()

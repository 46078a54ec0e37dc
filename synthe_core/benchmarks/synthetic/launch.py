"""Launchers of trials: processes of this machine, Ray or Slurm."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import cycle
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Protocol

import torch

from synthe_core.errors import InputError, unknown
from synthe_core.events import Event

EXTRAS = {"ray": "ray", "slurm": "submitit"}
LAUNCHERS = ("local", *EXTRAS)

Work = Callable[..., dict[str, Any]]


class Pending(Protocol):
    """A running trial: a concurrent.futures.Future, or the equivalent of a cluster's engine."""

    def done(self) -> bool: ...

    def result(self) -> Any: ...


class Launcher(Protocol):
    """Runs trials in other processes."""

    def start(self, work: Work, calls: Sequence[tuple[Any, ...]]) -> Sequence[Pending]:
        """Submits `work(*call)` for each call; they run in this order."""

    def drain_events(self) -> list[Event]:
        """The events that trials sent since the last call, with all events of finished trials."""

    def close(self) -> None:
        """Stops running trials."""


def check_launcher(launcher: str) -> None:
    """InputError if the launcher is unknown, its engine is not installed, or Slurm is not available."""
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, LAUNCHERS)
    module = EXTRAS.get(launcher)
    if module is not None and find_spec(module) is None:
        raise InputError(f"--launcher {launcher} needs {module}", f"pip install {module}, or 'synthe[cluster]'")
    if launcher == "slurm" and shutil.which("sbatch") is None:
        hint = "start the sweep where Slurm jobs are submitted, or use --jobs for this machine"
        raise InputError("--launcher slurm: `sbatch` is not found", hint)


def open_launcher(launcher: str, jobs: int | None, folder: Path, device: str) -> Launcher:
    """The launcher by its name, for `jobs` concurrent trials (None: one here, on Slurm as many as it schedules)."""
    check_launcher(launcher)
    if launcher == "ray":
        return Ray(device)
    return Slurm(jobs, folder, device) if launcher == "slurm" else Local(jobs or 1, device)


_events: SimpleQueue[Event] | None = None  # in a process of Local: the queue to the sweep


def send_event(event: Event) -> None:
    """Sends an event from a trial to the sweep; dropped where there is no queue, as on a cluster."""
    if _events is not None:
        _events.put(event)


class Local:
    """Processes of this machine, which share its threads and its GPUs."""

    def __init__(self, jobs: int, device: str = "cpu") -> None:
        context = get_context("spawn")
        self._events: SimpleQueue[Event] = context.SimpleQueue()
        gpus: SimpleQueue[int] = context.SimpleQueue()
        count = torch.cuda.device_count() if device == "cuda" else 0
        for gpu, _ in zip(cycle(range(count)), range(jobs), strict=False):
            gpus.put(gpu)
        threads = max(1, torch.get_num_threads() // jobs)
        self._pool = ProcessPoolExecutor(jobs, context, _init_worker, (threads, gpus if count else None, self._events))

    def start(self, work: Work, calls: Sequence[tuple[Any, ...]]) -> list[Future[Any]]:
        with _sigint_blocked():
            return [self._pool.submit(work, *call) for call in calls]

    def drain_events(self) -> list[Event]:
        events = []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def close(self) -> None:
        for process in list((self._pool._processes or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _init_worker(threads: int, gpus: SimpleQueue[int] | None, events: SimpleQueue[Event]) -> None:
    """Prepares a worker process."""
    global _events
    _events = events
    torch.set_num_threads(threads)
    if gpus is not None:
        torch.cuda.set_device(gpus.get())
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends the worker when the sweep is killed."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes that start within the block ignore Ctrl-C, which a terminal sends to all: the sweep stops them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Ray:
    """Ray's scheduler: a running cluster if RAY_ADDRESS names one, else this machine. One concurrent trial per
    GPU, or per CPU without GPUs."""

    def __init__(self, device: str) -> None:
        import ray

        self._ray = ray
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
        gpu = device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        self._resources = {"num_gpus": 1} if gpu else {"num_cpus": 1}

    def start(self, work: Work, calls: Sequence[tuple[Any, ...]]) -> list[Pending]:
        remote = self._ray.remote(max_retries=0, **self._resources)(work)
        return [remote.remote(*call).future() for call in calls]

    def drain_events(self) -> list[Event]:
        return []

    def close(self) -> None:
        self._ray.shutdown()


class Slurm:
    """Slurm through submitit: an array of jobs, one per trial, with logs in `folder`. SBATCH_* variables set
    partition and account."""

    def __init__(self, jobs: int | None, folder: Path, device: str, cluster: str = "slurm") -> None:
        import submitit

        self._executor = submitit.AutoExecutor(folder / "slurm", cluster)
        self._executor.update_parameters(name="synthe-bench", timeout_min=24 * 60)
        if cluster == "slurm":
            gpus = {"gpus_per_node": 1} if device == "cuda" else {}
            self._executor.update_parameters(slurm_array_parallelism=jobs or 256, **gpus)
        self._jobs: list[Any] = []

    def start(self, work: Work, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        self._jobs += self._executor.map_array(work, *zip(*calls, strict=True))
        return self._jobs

    def drain_events(self) -> list[Event]:
        return []

    def close(self) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel()

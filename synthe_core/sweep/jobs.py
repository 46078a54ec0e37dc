"""The runs of a sweep as processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from synthe_core.errors import WorkError
from synthe_core.events import Event, Metric, Notice, Progress

STOPPED = 130
"""The exit code of a run that has saved and stopped."""


class Job(Protocol):
    """A run that has been started."""

    def poll(self) -> int | None:
        """Its exit code; None while it goes on."""

    def events(self) -> list[Event]:
        """What it has reported since the last call."""

    def stop(self) -> None:
        """Has it save and end."""

    def kill(self) -> None:
        """Ends it at once; its checkpoints stay whole."""


class Launcher(Protocol):
    """Starts runs. at_once: how many go on at a time; None where a scheduler decides."""

    at_once: int | None

    def start(self, sweep: Path, name: str, log: Path) -> Job: ...

    def close(self) -> None: ...


class LocalJobs:
    """`at_once` processes of this machine, which share its cores and take its GPUs in turn."""

    def __init__(self, at_once: int, gpus: Sequence[str] = ()) -> None:
        self.at_once: int | None = at_once
        self._gpus = gpus
        self._slots: list[LocalJob | None] = [None] * at_once

    def start(self, sweep: Path, name: str, log: Path) -> Job:
        from synthe_core.sweep.folder import train_arguments

        slot = next(i for i, job in enumerate(self._slots) if job is None or job.poll() is not None)
        variables = dict(os.environ)
        variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(self._slots))))
        if self._gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        job = LocalJob(name, synthe_command(train_arguments(sweep, name)), log, variables)
        self._slots[slot] = job
        return job

    def close(self) -> None:
        for job in self._slots:
            if job is not None and job.poll() is None:
                job.kill()


class LocalJob:
    """A process in a session of its own, so that a terminal's Ctrl-C reaches it through the sweep only.

    Its events come as JSON lines; what it writes to stderr is in the log.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
        self._name = name
        self._events: SimpleQueue[Event] = SimpleQueue()
        try:
            with log.open("ab") as errors:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=variables,
                    start_new_session=True,
                )
        except OSError as error:
            raise WorkError(f"{name} could not be started: {error.strerror}") from error
        self._reader = threading.Thread(target=self._read, name=f"read-{name}", daemon=True)
        self._reader.start()

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None:
            self._reader.join(1.0)
        return code

    def events(self) -> list[Event]:
        events = []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if (event := parse_event(self._name, line)) is not None:
                    self._events.put(event)


def synthe_command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "synthe_cli", *arguments]


def parse_event(name: str, line: bytes) -> Event | None:
    """A JSON line of `synthe train --json` as an event of the run `name`; None for what a sweep does not show."""
    try:
        values: dict[str, Any] = json.loads(line)
        match values["event"]:
            case "progress" if values["what"] == "train":
                return Progress(name, values["done"], values["total"], values["unit"], values["eta"])
            case "metric":
                numbers = {key: value for key, value in values["values"].items() if value is not None}
                return Metric(int(values["step"]), values["phase"], numbers, name)
            case "notice" if values["level"] == "warning":
                return Notice(f"{name}: {values['message']}", "warning")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return None


def visible_gpus() -> list[str]:
    """The GPUs of this machine that processes may take, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [each for each in named.split(",") if each]
    return [str(index) for index in range(torch.cuda.device_count())]

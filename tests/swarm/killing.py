"""Work in a fork of the test's process that is killed: a round costs milliseconds, where a new program would import
torch for seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "sqlite3.connect")
"""What a process does to files, as Python's audit hooks report it."""
LIMIT = 120.0


def run_killed(work: Callable[[], object], *, at_event: int = 0, after: float | None = None) -> int:
    """Runs `work` in a fork; returns how many EVENTS there were if it came to its end, 0 if it was killed before.

    at_event: the event at which it kills itself. after: seconds after which it is killed from here; nothing that was
    opened here before should be used there.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _run(work, at_event, write)
        finally:
            os._exit(1)
    os.close(write)
    timer = threading.Timer(LIMIT if after is None else after, os.kill, (pid, signal.SIGKILL))
    timer.start()
    with os.fdopen(read) as pipe:
        count = int(pipe.read() or 0)
    timer.cancel()
    timer.join()  # before the number of the process can be another's
    os.waitpid(pid, 0)
    return count


class Log:
    """Numbers that a killed process has reported, each in one write to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def __call__(self, number: object) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(b"%s\n" % str(number).encode())

    @property
    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()


def _run(work: Callable[[], object], at_event: int, pipe: int) -> None:
    count, own = 0, threading.get_ident()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in EVENTS and threading.get_ident() == own:
            count += 1
            if count == at_event:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(LIMIT)

    torch.set_num_threads(1)  # the threads of this process's products are not in the fork
    sys.addaudithook(watch)
    work()
    os.write(pipe, str(count).encode())

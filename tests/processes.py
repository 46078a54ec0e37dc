"""Programs that tests start, each of which has a limit: no test waits for ever."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from tests.paths import ROOT

LIMIT = 300.0  # seconds
PROGRAM = "from synthe_cli.app import main; main()"


def run_program(command: list[Any], *, timeout: float = LIMIT, **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with a limit. Raises TimeoutExpired when it is over."""
    return subprocess.run(command, timeout=timeout, **options)


def start(command: list[Any], *, limit: float = LIMIT, **options: Any) -> subprocess.Popen[Any]:
    """`subprocess.Popen` of a program that is killed after `limit` seconds: reads of its pipes then end."""
    process = subprocess.Popen(command, **options)
    timer = threading.Timer(limit, process.kill)
    timer.daemon = True
    timer.start()
    return process


class Terminal:
    """`python ARGUMENTS...` on a pseudo-terminal of its own. Each wait has a limit."""

    def __init__(self, *arguments: object) -> None:
        pid, self.handle = pty.fork()
        if pid == 0:
            os.environ.update(TERM="xterm", PYTHONPATH=str(ROOT), NO_COLOR="1")
            os.execv(sys.executable, [sys.executable, *map(str, arguments)])
        self.pid, self.output = pid, ""

    def write(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def until(self, pattern: str, seconds: float = LIMIT) -> str:
        """The output since the last call, up to the end of the pattern's first match."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.output)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.output!r}"
            if select.select([self.handle], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self.handle, 65536).decode("utf-8", "replace")
                except OSError:  # the program has ended
                    assert re.search(pattern, self.output), self.output
        output, self.output = self.output[: match.end()], self.output[match.end() :]
        return output

    def exit_code(self, seconds: float = LIMIT) -> int:
        """Waits for the end of the program; AssertionError where it goes on."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, f"still running after {seconds} s: {self.output!r}"
            if select.select([self.handle], [], [], 0.05)[0]:  # a full terminal would block the program
                try:
                    self.output += os.read(self.handle, 65536).decode("utf-8", "replace")
                except OSError:
                    time.sleep(0.01)

    def close(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.handle)

"""Grammars are compiled in a process of their own first: one that takes too much ends there, and is refused."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from functools import cache

from synthe_core.errors import WorkError
from synthe_core.inference import grammar_worker

TIMEOUT = 30.0
"""Seconds until a worker that does not answer is killed, on a machine that is busy with other work."""
START_TIMEOUT = 60.0


class GrammarChecker:
    """One worker process, which is started when it is needed and replaced when it has died. May be called by any
    thread; grammars are checked one after the other, so that they never take more than one processor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None

    def error_of(self, grammar: str) -> str | None:
        """What is wrong with a grammar: it is invalid, or takes too long or too much memory; None for nothing."""
        with self._lock:
            return self._ask(grammar)

    def close(self) -> None:
        """Ends the worker."""
        with self._lock:
            self._kill()

    def _ask(self, grammar: str) -> str | None:
        worker = self._worker
        if worker is None or worker.poll() is not None:
            self._kill()
            worker = self._worker = _start()
        try:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps({"grammar": grammar}).encode() + b"\n")
            worker.stdin.flush()
            answer = _line(worker, TIMEOUT)
        except OSError:
            answer = b""
        if not answer:
            self._kill()
            return "it takes too much time or memory to compile"
        error = json.loads(answer)["error"]
        return None if error is None else str(error)

    def _kill(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    pipe.close()


def _start() -> subprocess.Popen[bytes]:
    """A worker that is ready for its first job."""
    worker = subprocess.Popen(
        [sys.executable, "-P", grammar_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt from the keyboard is for the server
    )
    if _line(worker, START_TIMEOUT) != b"ready\n":
        worker.kill()
        worker.wait()
        raise WorkError("the process that compiles JSON schemas does not start")
    return worker


def _line(worker: subprocess.Popen[bytes], timeout: float) -> bytes:
    """The next line that the worker writes; empty if it has died, or does not write one in time."""
    assert worker.stdout is not None
    end, line = time.monotonic() + timeout, b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([worker.stdout], [], [], max(0.0, end - time.monotonic()))
        part = os.read(worker.stdout.fileno(), 1 << 16) if ready else b""
        if not part:
            return b""
        line += part
    return line


@cache
def grammar_checker() -> GrammarChecker:
    """The checker of this process."""
    checker = GrammarChecker()
    atexit.register(checker.close)
    return checker

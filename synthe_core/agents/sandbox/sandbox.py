"""Runs programs in the sandbox: starts the launcher, reads the output, and ends what takes too long."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from synthe_core.agents.sandbox import launcher
from synthe_core.agents.sandbox.bubblewrap import command
from synthe_core.agents.sandbox.capture import Capture
from synthe_core.agents.sandbox.limits import Ending, Execution, Limits
from synthe_core.agents.sandbox.seccomp import filter_program
from synthe_core.errors import InputError, WorkError

POLL = 0.05  # seconds between two looks at a cancellation
GRACE = 5.0  # seconds in which the launcher ends everything
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/nix/store")
FILES = ("/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
HINT = "allow user namespaces, or use --unsafe-tools, which runs programs with limits of memory and time only"


def interpreter() -> str:
    """The Python of this process, outside of a virtual environment: programs have the standard library."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def visible_files() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(source, target) of what the sandbox sees of the file system, and (path, target) of the symbolic links to it."""
    binds: list[tuple[str, str]] = []
    links: list[tuple[str, str]] = []
    prefix = os.path.realpath(sys.base_prefix)
    for path in (prefix, *LIBRARIES, *FILES):
        if os.path.islink(path) and path in LIBRARIES:
            links.append((path, os.readlink(path)))
        elif os.path.exists(path) and not any(path.startswith(f"{seen}/") for seen, _ in binds):
            binds.append((path, path))
    return binds, links


@dataclass(frozen=True)
class Sandbox:
    """Runs Python programs. isolated: in namespaces of their own; False only by the user's wish. bwrap: the path of
    bubblewrap, which makes the namespaces; None where the launcher makes them."""

    isolated: bool = True
    limits: Limits = field(default_factory=Limits)
    bwrap: str | None = None

    @classmethod
    def open(cls, *, unsafe: bool = False, limits: Limits | None = None) -> Sandbox:
        """A sandbox in which a program has been run: with bubblewrap, where that is installed and works. InputError
        where the system allows none; with `unsafe`, one that does not isolate then."""
        limits = limits or Limits()
        reason: str | None = "it needs Linux"
        for bwrap in dict.fromkeys((shutil.which("bwrap"), None)) if sys.platform == "linux" else ():
            made = cls(True, limits, bwrap)
            if (reason := _failure(made)) is None:
                return made
        if not unsafe:
            raise InputError(f"programs cannot be isolated here: {reason}", HINT)
        return cls(False, limits)

    def run(self, code: str, *, cancelled: threading.Event | None = None) -> Execution:
        """Runs a program to its end, or to that of a limit. WorkError if it cannot be isolated."""
        started = time.monotonic()
        with ExitStack() as stack:
            scratch = "" if self.isolated else stack.enter_context(tempfile.TemporaryDirectory(prefix="synthe-tool-"))
            run = stack.enter_context(_Run(self._job(code, scratch)))
            ending = run.read(started + self.limits.seconds, cancelled or threading.Event(), self.limits.output)
            return run.result(ending, time.monotonic() - started)

    def _job(self, code: str, scratch: str) -> dict[str, Any]:
        binds, links = visible_files() if self.isolated else ([], [])
        home = launcher.SCRATCH if self.isolated else scratch
        return {
            "isolated": self.isolated,
            "code": code,
            "program": launcher.PROGRAM if self.isolated else os.path.join(scratch, "program.py"),
            "scratch": scratch,
            "python": interpreter(),
            "options": ["-B", "-X", "utf8"],
            "environment": {"HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"},
            "bwrap": command(self.bwrap, interpreter(), binds, links, self.limits.disk) if self.bwrap else [],
            "binds": binds,
            "links": links,
            "filter": filter_program().hex() if self.isolated else "",
            "limits": asdict(self.limits),
        }


class _Run:
    """One program that runs. At the end of its `with` block all of its processes are dead."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = json.dumps(job).encode() + b"\n"

    def __enter__(self) -> _Run:
        self._report, write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [interpreter(), "-I", "-S", "-B", launcher.__file__, str(write)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(write,),
                cwd="/",
                env={},
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._report)
            raise WorkError(f"the sandbox does not start: {error.strerror}") from error
        finally:
            os.close(write)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()  # the launcher ends what runs, and waits for it
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # the namespace's first process dies with it
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        os.close(self._report)

    def read(self, deadline: float, cancelled: threading.Event, limit: int) -> Ending | None:
        """Reads the output until the program has ended; why it is ended here, None if it ends itself."""
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._captures = {self._process.stdout: Capture(limit), self._process.stderr: Capture(limit)}
        self._words = b""
        with suppress(OSError):
            self._process.stdin.write(self._job)
            self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._report, selectors.EVENT_READ)
            for stream in self._captures:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                if cancelled.is_set():
                    return "cancelled"
                if time.monotonic() > deadline:
                    return "time"
                for key, _ in selector.select(POLL):
                    piece = os.read(key.fd, 1 << 16)
                    if not piece:
                        selector.unregister(key.fileobj)
                    elif key.fileobj == self._report:
                        self._words += piece
                    else:
                        self._captures[key.fileobj].push(piece)  # type: ignore[index]
                if self._words.endswith(b"\n"):
                    self._drain()
                    return None
        return None

    def _drain(self) -> None:
        """What the pipes hold when the program has ended: processes that it left behind may still have them open."""
        for stream, capture in self._captures.items():
            os.set_blocking(stream.fileno(), False)
            for _ in range(64):  # a pipe holds less
                try:
                    piece = os.read(stream.fileno(), 1 << 16)
                except BlockingIOError:
                    break
                if not piece:
                    break
                capture.push(piece)

    def result(self, ending: Ending | None, seconds: float) -> Execution:
        out, err = self._captures.values()
        code = 0
        if ending is None:
            words: dict[str, Any] = json.loads(self._words.splitlines()[-1]) if self._words else {}
            if "error" in words:
                raise WorkError(f"programs cannot be isolated here: {words['error']}", HINT)
            if words.get("reason"):
                ending = words["reason"]
            elif "status" not in words:
                ending, code = "signal", int(signal.SIGKILL)  # the whole sandbox was killed from outside
            else:
                status = words["status"]
                ending, code = ("signal", -status) if status < 0 else ("exit", status)
                if ending == "signal" and code == getattr(signal, "SIGXCPU", 0):
                    ending = "time"
        return Execution(out.text(), err.text(), ending, code, seconds, out.dropped + err.dropped)


def _failure(sandbox: Sandbox) -> str | None:
    """Why a first program does not run as it should; None if it does."""
    try:
        execution = sandbox.run("print(6 * 7)")
    except WorkError as error:
        return error.message.partition(": ")[2] or error.message
    if execution.succeeded and execution.stdout == "42\n":
        return None
    return " ".join(execution.stderr.split())[-200:] or f"the first program ends by {execution.ending}"

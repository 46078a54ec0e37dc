"""Command lines that run at the same time, each in a process of its own: forks of one that has loaded everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.paths import ROOT
from tests.processes import start

PROGRAM = """\
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)
import synthe_cli.app, synthe_core.training, synthe_core.merging.merge, synthe_core.packing.pack
for line in sys.stdin:
    request = json.loads(line)
    wait, release = os.pipe()
    pids = []
    for number, arguments in enumerate(request["commands"]):
        pid = os.fork()
        if pid == 0:
            os.close(release)
            os.chdir(request["folder"])
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                path = os.path.join(request["logs"], f"{number}.{name}")
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            os.read(wait, 1)  # until all are there
            code = 99
            try:
                sys.argv = ["synthe", *arguments]
                synthe_cli.app.main()
            except SystemExit as end:
                code = end.code or 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    os.close(wait)
    os.close(release)
    if request["kill_after"] is not None:
        time.sleep(request["kill_after"])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    stdout: str
    stderr: str


class Forks:
    """Runs command lines in `folder`."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = process

    def run(self, folder: Path, *commands: list[Any], kill_after: float | None = None) -> list[Ended]:
        """Begins all at once and waits for their ends. kill_after: seconds after which they are killed."""
        logs = folder.parent / f"{folder.name}-logs"
        logs.mkdir(exist_ok=True)
        texts = [[str(word) for word in command] for command in commands]
        request = {"folder": str(folder), "logs": str(logs), "commands": texts, "kill_after": kill_after}
        self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        codes = json.loads(self._process.stdout.readline())  # type: ignore[union-attr]
        texts_of = [[(logs / f"{n}.{name}").read_text() for name in ("stdout", "stderr")] for n in range(len(codes))]
        return [Ended(code, *pair) for code, pair in zip(codes, texts_of, strict=True)]


@contextmanager
def forks(cache: Path, limit: float = 1500.0) -> Iterator[Forks]:
    """A process to fork; it is killed after `limit` seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SYNTHE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    process = start(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        limit=limit,
        env=environment,
    )
    try:
        yield Forks(process)
    finally:
        process.kill()
        process.wait(60)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

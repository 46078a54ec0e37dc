"""llama.cpp's `llama-server` as a candidate, a process that is started for each number of texts."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from synthe_core.benchmarks.decoding.http_candidate import HttpCandidate
from synthe_core.benchmarks.decoding.workload import PREFILL_TOKENS
from synthe_core.errors import InputError, WorkError

PROGRAM = "llama-server"
CONTEXT = 1024  # tokens of a text
START = 120.0  # seconds until it must answer
MAGIC = b"GGUF"


def find_server(path: Path | None) -> Path:
    """The program. InputError if there is none."""
    program = shutil.which(PROGRAM) if path is None else shutil.which(path)
    if program is None:
        where = "on the PATH" if path is None else f"at {path}"
        raise InputError(f"llama.cpp: no {PROGRAM} {where}", "install llama.cpp, or name it: --llama-server PATH")
    return Path(program)


class LlamaServer(HttpCandidate):
    """InputError where the program is missing or the model is no GGUF file; WorkError if it does not start."""

    name = "llama.cpp"

    def __init__(self, model: Path, vocab: int, threads: int, program: Path | None = None) -> None:
        self._program, self._path, self._threads = find_server(program), model, threads
        if not model.is_file() or model.open("rb").read(len(MAGIC)) != MAGIC:
            raise InputError(f"llama.cpp runs GGUF files, and {model} is none", "synthe export gguf makes one")
        self.vocab, self.model = vocab, model.name
        self.settings = {
            "version": self._version(), "weights": "as stored", "threads": str(threads), "over": "HTTP, its server"
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)

    def prepare(self, rows: int) -> None:
        self._stop()
        with socket.socket() as free:
            free.bind((self.host, 0))
            self.port = free.getsockname()[1]
        threads = str(self._threads)
        context = rows * max(CONTEXT, 2 * PREFILL_TOKENS)
        command = [
            self._program, "--model", self._path, "--host", self.host, "--port", self.port, "--threads", threads,
            "--threads-batch", threads, "--parallel", rows, "--ctx-size", context, "--n-gpu-layers", 0,
        ]  # fmt: skip
        self._log.truncate(0)
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        end = time.monotonic() + START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self._stop()
                raise WorkError(f"{PROGRAM} did not start: {self._last_line()}", "run it by hand to see why")
            time.sleep(0.1)

    def close(self) -> None:
        self._stop()
        self._log.close()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def _version(self) -> str:
        try:
            done = subprocess.run([self._program, "--version"], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{self._program} cannot be run: {error}", "--llama-server PATH names another") from None
        match = re.search(r"version: *(.+)", done.stdout + done.stderr)
        return match[1].strip() if match else "unknown"

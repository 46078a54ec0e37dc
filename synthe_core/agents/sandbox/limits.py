"""What a program may take, and what is known of it when it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ending = Literal["exit", "signal", "time", "memory", "processes", "files", "cancelled"]


@dataclass(frozen=True)
class Limits:
    """seconds:     by the clock.
    cpu_seconds: of processor time, a process.
    memory:      bytes of address space a process, and of resident memory all processes together.
    processes:   at a time.
    files:       open at a time, a process.
    disk:        bytes of the scratch folder, which is in memory.
    output:      bytes that are returned of stdout, and as many of stderr.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory: int = 512 << 20
    processes: int = 16
    files: int = 64
    disk: int = 64 << 20
    output: int = 32 << 10


@dataclass(frozen=True)
class Execution:
    """A program that has run.

    ending: `exit` by itself, with `code`; `signal` by a signal, whose number is `code`; `time`, `memory`,
    `processes`, `files`: over that limit; `cancelled` by the caller. dropped: bytes of output beyond the limit.
    """

    stdout: str
    stderr: str
    ending: Ending
    code: int = 0
    seconds: float = 0.0
    dropped: int = 0

    @property
    def succeeded(self) -> bool:
        return self.ending == "exit" and self.code == 0

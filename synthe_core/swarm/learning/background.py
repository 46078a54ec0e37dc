"""Learning in a process of its own, at low priority, begun by a server that is idle."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

from synthe_core.swarm.feedback.pairs import Pairs
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.plan import new_pairs
from synthe_core.swarm.opening import pair_limits
from synthe_core.swarm.store import Store

NICE = 19
GRACE = 20.0
"""Seconds in which a process that is to stop saves what it has trained."""


def lower_priority() -> None:
    """Leaves the processor to others whenever they want it."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(NICE)


def command_of(folder: SwarmFolder) -> list[str]:
    """The program that learns whatever there is to learn in a swarm."""
    return [sys.executable, "-m", "synthe_core.swarm.learning", str(folder.path.absolute())]


class BackgroundLearning:
    """Starts the program when a specialist has enough approved pairs that were not tried yet. Used by one thread."""

    def __init__(self, folder: SwarmFolder, store: Store, command: Sequence[str] | None = None) -> None:
        self._folder, self._command = folder, list(command or command_of(folder))
        self._pairs = Pairs(store, pair_limits(folder))
        self._process: subprocess.Popen[bytes] | None = None
        self._tried: dict[str, tuple[int, ...]] = {}

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def consider(self, idle_seconds: float) -> bool:
        """Starts to learn if it is time; returns whether it did."""
        spec = self._folder.spec.learning
        if not spec.automatic or self.is_running or idle_seconds < spec.idle_seconds or not (due := self._due()):
            return False
        self._tried |= due
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the server's, which ends it then
        )
        return True

    def close(self) -> None:
        """Ends the program, which saves first."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _due(self) -> dict[str, tuple[int, ...]]:
        """The specialists with enough pairs, and the pairs: the same are not tried twice."""
        due = {}
        for name in self._folder.spec.specialists:
            ids = tuple(pair.id for pair in new_pairs(self._pairs, name))
            if len(ids) >= self._folder.spec.learning.min_pairs and self._tried.get(name) != ids:
                due[name] = ids
        return due

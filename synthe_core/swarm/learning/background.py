"""Learning in a process of its own, at low priority, begun by a server that is idle."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

from synthe_core.swarm.feedback.pairs import Pairs, PairState
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.plan import SEPARATOR
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

    def consider(self, idle_seconds: float, *, wanted: bool = False) -> bool:
        """Starts to learn if it is time, or somebody wants it; returns whether it did."""
        spec = self._folder.spec.learning
        is_time = spec.automatic and idle_seconds >= spec.idle_seconds
        if self.is_running or not (is_time or wanted) or not (due := self._due(again=wanted)):
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

    def _due(self, again: bool) -> dict[str, tuple[int, ...]]:
        """The specialists with enough pairs, and the pairs: the same are tried once, unless it is `again`."""
        due = due_specialists(self._folder, self._pairs)
        return {name: ids for name, ids in due.items() if again or self._tried.get(name) != ids}


def due_specialists(folder: SwarmFolder, pairs: Pairs) -> dict[str, tuple[int, ...]]:
    """The specialists with enough approved pairs, and the pairs by id."""
    approved = pairs.ids_by_specialist(PairState.APPROVED)
    due = {}
    for name, spec in folder.spec.specialists.items():
        ids = sorted(id for wrote, own in approved.items() if name in wrote.split(SEPARATOR) for id in own)
        if spec.url is None and len(ids) >= folder.spec.learning.min_pairs:
            due[name] = tuple(ids)
    return due

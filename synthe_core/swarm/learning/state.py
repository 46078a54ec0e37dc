"""What learning does at this moment, in a file that every process of the swarm reads."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from synthe_core.events import Event, Metric, Progress
from synthe_core.storage.atomic import write_file
from synthe_core.swarm.folder import SwarmFolder

STATE = "learning.json"
INTERVAL = 1.0
"""Seconds between two writes."""
POINTS = 200
"""Of a curve, at most: of more, every second one is left out."""


class LearningState:
    """The file while one process learns. It is removed when that ends; a kill leaves it, with a dead process's id."""

    def __init__(self, folder: SwarmFolder) -> None:
        self._path = folder.path / STATE
        self._written = 0.0
        self._facts: dict[str, Any] = {"pid": os.getpid(), "began": time.time()}
        self._losses, self._every, self._steps = list[tuple[int, float]](), 1, 0

    def begin(self, specialist: str) -> None:
        """Notes who learns now."""
        self._facts = {"pid": os.getpid(), "began": time.time(), "specialist": specialist}
        self._losses, self._every, self._steps = [], 1, 0
        self.flush()

    def show(self, event: Event) -> None:
        """Notes how far it is."""
        if isinstance(event, Progress):
            self._facts |= {"doing": event.what, "done": event.done, "total": event.total, "unit": event.unit}
        elif isinstance(event, Metric):
            facts = {key: event.values[key] for key in ("loss", "accuracy") if key in event.values}
            self._facts[event.phase] = {"step": event.step, **facts}
            if event.phase == "train" and "loss" in facts:
                self._add(event.step, facts["loss"])
        if time.monotonic() - self._written > INTERVAL:
            self.flush()

    def _add(self, step: int, loss: float) -> None:
        """Adds a point to the curve of the training loss, which stays short."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._losses.append((step, round(loss, 5)))
        if len(self._losses) > POINTS:
            self._losses, self._every = self._losses[1::2], 2 * self._every
        self._facts["losses"] = self._losses

    def end(self) -> None:
        self._path.unlink(missing_ok=True)

    def flush(self) -> None:
        """Writes the file now."""
        self._written = time.monotonic()
        write_file(self._path, json.dumps(self._facts) + "\n")


def learning_now(folder: SwarmFolder) -> dict[str, Any] | None:
    """What learning does now; None if nobody learns."""
    try:
        facts = json.loads((folder.path / STATE).read_text(encoding="utf-8"))
        return facts if isinstance(facts, dict) and _is_alive(facts["pid"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_alive(pid: int) -> bool:
    if not Path("/proc/self").exists():  # elsewhere signal 0 would do, but for a process of another user
        return True
    return Path(f"/proc/{int(pid)}").exists()

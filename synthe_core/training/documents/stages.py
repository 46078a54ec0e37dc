"""What a model has written so far, on disk, so that an interruption costs one stage of the work."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

from synthe_core.events import Event
from synthe_core.storage.atomic import write_file


class Stages:
    """The texts of each finished stage by its name, in a JSON file; without a path, in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._texts: dict[str, list[str]] = {}
        if path is not None and path.is_file():
            self._texts = json.loads(path.read_text(encoding="utf-8"))

    def run(self, name: str, work: Generator[Event, None, list[str]]) -> Generator[Event, None, list[str]]:
        """The texts of stage `name`: those of `work`, which is run if the stage is not finished yet."""
        if name not in self._texts:
            self._texts[name] = yield from work
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_file(self._path, json.dumps(self._texts, ensure_ascii=False))
        return self._texts[name]

    def remove(self) -> None:
        """Deletes the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

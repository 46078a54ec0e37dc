"""Answers of a model to requests, in a file that an interrupted run leaves whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TextIO

from synthe_core.storage.atomic import failure


def key_of(kind: str, arguments: Any, turn: int = 0) -> str:
    """A short name for a request. turn: how often the same one has been asked before, where that matters."""
    text = json.dumps([kind, arguments, turn], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Answers:
    """Lines of {"key", "answer"}, appended as they are found. A line that was cut off is left out, and the next begins
    after it. With no path, nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._load(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else True
            self._file = path.open("a", encoding="utf-8", buffering=1)  # a line is out when it is written
            if not whole:
                self._file.write("\n")
        except OSError as error:
            raise failure(path, error) from error

    def _load(self, text: str) -> bool:
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                continue
        return not text or text.endswith("\n")

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def __setitem__(self, key: str, answer: Any) -> None:
        self._known[key] = answer
        if self._file is not None:
            try:
                self._file.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n")
            except OSError as error:
                raise failure(self.path or Path(), error) from error

    def close(self, keep: bool = True) -> None:
        """Writes what is left; without `keep` the file is removed."""
        if self._file is None or self.path is None:
            return
        try:
            self._file.close()
            if not keep:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise failure(self.path, error) from error
        self._file = None

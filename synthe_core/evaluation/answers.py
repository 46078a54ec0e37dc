"""A file of a model's answers to requests, which stays readable after an interruption."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TextIO

from synthe_core.storage.atomic import failure


def request_key(kind: str, arguments: Any, repeat: int = 0) -> str:
    """A digest of a request. repeat: how many equal requests came before it, if each is to have its own answer."""
    text = json.dumps([kind, arguments, repeat], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Answers:
    """Lines of {"key", "answer"}, appended as they are computed. A line that was cut short is skipped. Without a path,
    answers are in memory only."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            complete = self._load(path.read_bytes()) if path.is_file() else True
            self._file = path.open("a", encoding="utf-8", buffering=1)  # line-buffered
            if not complete:
                self._file.write("\n")
        except OSError as error:
            raise failure(path, error) from error

    def _load(self, content: bytes) -> bool:
        for line in content.split(b"\n"):  # not splitlines: an answer may hold U+2028 or U+0085
            try:
                entry = json.loads(line)
                self._answers[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                continue
        return not content or content.endswith(b"\n")

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def __setitem__(self, key: str, answer: Any) -> None:
        self._answers[key] = answer
        if self._file is not None:
            try:
                self._file.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n")
            except OSError as error:
                raise failure(self.path or Path(), error) from error

    def close(self, keep: bool = True) -> None:
        """Closes the file; without `keep` it is deleted."""
        if self._file is None or self.path is None:
            return
        try:
            self._file.close()
            if not keep:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise failure(self.path, error) from error
        self._file = None

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_core.data.prepare import Packed, load
from synthe_core.data.spec import DataSpec
from tests import paths

SHARED = paths.SHARED / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or left in the person's own cache; the working folder is empty."""
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache"


@pytest.fixture
def shared() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"no shared data here ({name})")
        return path

    return find


def prose(number: int, size: int = 900) -> str:
    """A text of about `size` bytes that differs by number and holds characters of one to four bytes."""
    words = ["stone", "river", "été", "naïve", "δρόμος", "雨", "🙂", "letters", "of", "the", "and", "under"]
    line = " ".join(words[(number * 7 + k * (number % 5 + 1)) % len(words)] for k in range(14))
    lines = [f"{number}.{k} {line}" for k in range(max(1, size // (len(line.encode()) + 6)))]
    return "\n".join(lines) + "\n"


def write_rows(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)))
    return path


def packed(sources: Any, **keys: Any) -> Packed:
    return load(DataSpec(sources=sources, **keys))


def text_of(split: Any, tokenizer: Any) -> list[bytes]:
    """The documents of a split, as bytes."""
    ids = split.read(0, split.tokens).tolist()
    documents, begin = [], 0
    for i, token in enumerate(ids):
        if token == tokenizer.end:
            documents.append(tokenizer.bytes_of(ids[begin:i]))
            begin = i + 1
    assert begin == len(ids), "the last document has no end"
    return documents

"""The embedded corpus: the text of the Python that is running, real text on every machine with no download."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from synthe_core.data.documents import Piece, Source
from synthe_core.errors import InputError

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload", "pydoc_data"}
"""Folders not read: tests, installed packages, and the topics' own file, which is read as text instead."""


class StandardLibrary(Source):
    """The reference topics of `help()` as prose, then every .py source in the order of its path.

    Tests, installed packages, build settings of this machine and the code tables generated under `encodings` are
    left out. The text depends on the version of Python, and on nothing else. A source's label is the package or module
    at the top that it belongs to; topics have none.
    """

    name = "stdlib"

    def identity(self) -> Any:
        listing = [(str(path.relative_to(self._root)), path.stat().st_size) for path in self._paths]
        return ["stdlib", platform.python_version(), hashlib.sha256(repr(listing).encode()).hexdigest()]

    def size(self) -> int:
        return sum(len(text) for _, text in self._topics) + sum(path.stat().st_size for path in self._paths)

    def pieces(self, skip: int = 0) -> Iterator[Piece]:
        for document, (name, text, label) in enumerate(self._documents()):
            if document >= skip:
                yield Piece.whole(text, name, document, label)

    def _documents(self) -> Iterator[tuple[str, bytes, str]]:
        for name, text in self._topics:
            yield name, text, ""
        for path in self._paths:
            if text := _utf8(path.read_bytes()):
                yield str(path), text, path.relative_to(self._root).parts[0].removesuffix(".py")

    @cached_property
    def _root(self) -> Path:
        return Path(sysconfig.get_path("stdlib"))

    @cached_property
    def _paths(self) -> list[Path]:
        paths = []
        for folder, folders, files in os.walk(self._root):
            folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
            for path in (Path(folder, file) for file in files if file.endswith(".py")):
                settings = path.name.startswith("_sysconfigdata")
                table = path.parent.name == "encodings" and b"gencodec.py" in path.read_bytes()[:300]
                if not settings and not table:
                    paths.append(path)
        if not paths:
            raise InputError(
                f"this Python has no sources of its standard library in {self._root}",
                "name a text of yours: --data my.txt",
            )
        return sorted(paths, key=lambda path: path.relative_to(self._root).as_posix())

    @cached_property
    def _topics(self) -> list[tuple[str, bytes]]:
        try:
            from pydoc_data.topics import topics  # left out of some distributions' Python
        except ImportError:
            return []
        return [(f"topic {name}", text.encode()) for name, text in sorted(topics.items())]


def _utf8(source: bytes) -> bytes:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return source if encoding == "utf-8" else source.decode(encoding).encode()

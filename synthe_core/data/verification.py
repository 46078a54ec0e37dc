"""Whether packed text is what was packed: every shard's digest is checked once, and again after its files change."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

from synthe_core.data.shards import Index, shard_files
from synthe_core.errors import WorkError
from synthe_core.events import Event, Progress
from synthe_core.storage.atomic import write_file

SETTLED = 2 * 10**9
"""Nanoseconds after which a change of a file surely shows in its times."""
Stamp = list[list[int] | str]
"""Size, times and inode of a shard's files when they had the digest that stands last."""


def read_intact(folder: Path) -> Generator[Event, None, Index | None]:
    """The index in `folder`; None where there is none, or where a shard is not what it was when it was packed."""
    index = Index.read(folder)
    if index is None:
        return None
    shards = [(file, digest) for side in index.sides.values() for file, _, digest in side.shards]
    seen = _stamps(folder)
    stamps: dict[str, Stamp] = {}
    shown = time.monotonic()
    for number, (file, digest) in enumerate(shards):
        paths = shard_files(folder, file)
        stamp: Stamp = [*map(_status, paths), digest]
        if seen.get(file) != stamp:
            if time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                yield Progress(f"checking the packed text of {index.source}", number, len(shards), "shards")
            if _digest(paths) != digest:
                return None
        if all(time.time_ns() - changed > SETTLED for path in paths for changed in _status(path)[1:3]):
            stamps[file] = stamp
    if stamps != seen:
        with suppress(OSError, WorkError):  # of a folder that cannot be written, everything is checked each time
            write_file(_stamps_file(folder), json.dumps(stamps))
    return index


def _status(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def _stamps_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.verified.json")  # beside the folder: what is in it depends on the text only


def _stamps(folder: Path) -> dict[str, Stamp]:
    try:
        stamps = json.loads(_stamps_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stamps if isinstance(stamps, dict) else {}

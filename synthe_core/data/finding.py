"""The files that a path, a folder or a pattern stands for. Linked folders are followed, each folder once."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from synthe_core.errors import InputError

WILDCARDS = "*?["


class FileList(NamedTuple):
    """Files in the order of their names; `notes` say what was left out, each a line."""

    paths: list[Path]
    notes: list[str]


def find(text: str, readable: Callable[[Path], bool]) -> FileList:
    """The files that `text` stands for; none if nothing is there. Of a folder those that are `readable`, by suffix."""
    path = Path(text).expanduser()
    notes: list[str] = []
    if path.is_file():
        if path.stat().st_size == 0:
            raise InputError(f"{text} is empty", "name a file with text in it")
        return FileList([path], notes)
    if path.is_dir():
        paths = [p for p in _walk(path, notes) if _visible(p.relative_to(path)) and readable(p) and _is_file(p, notes)]
        if not any(p.stat().st_size for p in paths):
            kinds = "read are .txt, .md, .py and the like, .jsonl, .json, .csv, .tsv and .parquet"
            raise InputError(f"folder {text} holds no text", kinds)
    else:
        paths = [p for p in _matching(path, notes) if p.is_file()]
        if paths and not any(p.stat().st_size for p in paths):
            raise InputError(f"every file that matches {text} is empty", "name a file with text in it")
    return FileList(sorted((p for p in paths if p.stat().st_size), key=lambda p: p.as_posix()), notes)


def literal_part(path: Path) -> Path:
    """`path` up to its first part with a wildcard; a bracket in a name that exists is no wildcard."""
    literal = Path()
    for part in path.parts:
        if set(part) & set(WILDCARDS) and not os.path.lexists(literal / part):
            break
        literal /= part
    return literal


def _matching(path: Path, notes: list[str]) -> Iterator[Path]:
    """The paths that match a pattern, as `glob` does, but through each folder once: links may go around."""
    base = literal_part(path)
    pattern = path.parts[len(base.parts) :]
    if "**" not in pattern:
        yield from map(Path, glob.glob(os.path.join(glob.escape(str(base)), *pattern)))
        return
    for file in _walk(base, notes, hidden=any(part.startswith(".") for part in pattern)):
        if _matches(file.relative_to(base).parts, pattern):
            yield file


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if _matches(parts, pattern[1:]) or (len(pattern) == 1 and _visible(Path(*parts))):
            return True
        return bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern)
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _walk(root: Path, notes: list[str], hidden: bool = False) -> Iterator[Path]:
    """Every path below `root` that is no folder. Links to folders come last, so that a folder goes by its own name."""

    def unreadable(error: OSError) -> None:
        notes.append(f"{error.filename} cannot be read and is left out: {error.strerror}")

    seen: set[tuple[int, int]] = set()
    pending = [root]
    while pending:
        links: list[Path] = []
        for base in pending:
            for folder, folders, files in os.walk(base, onerror=unreadable):
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                folders[:] = [name for name in folders if hidden or not name.startswith(".")]
                links += [path for name in folders if (path := Path(folder, name)).is_symlink()]
                yield from (Path(folder, name) for name in files)
        pending = sorted(links)


def _visible(path: Path) -> bool:
    return not any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _is_file(path: Path, notes: list[str]) -> bool:
    if path.is_symlink() and not path.exists():
        notes.append(f"{path} is a link to what is not there, and is left out")
    return path.is_file()

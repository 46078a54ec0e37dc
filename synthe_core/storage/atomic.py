"""Folders and files that are on disk whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from synthe_core.errors import SyntheError, WorkError

PARTIAL = ".partial"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to write into; left without an error it is synced and becomes `path`.

    What was at `path` stays until the new one is whole. Raises WorkError where the disk is full or cannot be written.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _sync_tree(partial)
        if path.exists():
            old = path.with_name(f".{path.name}.old{PARTIAL}")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise failure(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_file(path: Path, content: str) -> None:
    """Replaces a text file so that it is the old one or the new one, never a part."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise failure(path, error) from error


def sweep(folder: Path) -> None:
    """Removes what an interrupted process left half written in `folder`.

    A process that died between the two renames of `new_folder` has left the old folder under its hidden name: it is
    put back.
    """
    for left in folder.glob(f".*{PARTIAL}"):
        name = left.name[1 : -len(PARTIAL)]
        if name.endswith(".old") and not (folder / name.removesuffix(".old")).exists():
            left.rename(folder / name.removesuffix(".old"))
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def failure(path: Path, error: Exception) -> SyntheError:
    """A failed write as one line."""
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text or "os error 122" in text:
        return WorkError(f"the disk is full: {path} could not be written", "free some space; what was saved is whole")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(text.split())
    return WorkError(f"{path} could not be written: {reason}", "what was saved before is whole")


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

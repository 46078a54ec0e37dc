"""Writing folders and files atomically: after a crash the old content or the new one is on disk, never a part.

A link is written through: its target is replaced. What is written is claimed (see `claim`): two processes cannot write
one path at once.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError

from synthe_core.errors import InputError
from synthe_core.storage.claim import COMPLETE, PARTIAL, REPLACED, claim, move_into, partial_path, remove
from synthe_core.storage.claim import failure as failure

WAIT = 30.0  # seconds to wait for another writer of a small file


@contextmanager
def new_folder(path: Path, *, claimed: bool = False) -> Iterator[Path]:
    """Yields a temporary folder; after the block it is synced and replaces `path`.

    After an error in the block, `path` is unchanged. claimed: whether the caller has claimed the path. A folder that
    cannot be renamed (the working folder, a mounted one) is filled in place; it must be empty. Busy if another process
    writes there, WorkError if the disk is full or cannot be written.
    """
    try:
        with _claimed(path, claimed, parents=True) as target:
            if target.is_dir() and _is_fixed(target):
                yield from _fill(target)
            else:
                yield from _replace(target)
    except (OSError, SafetensorError) as error:
        raise failure(path, error) from error


def _replace(target: Path) -> Iterator[Path]:
    partial = partial_path(target)
    try:
        partial.mkdir(parents=True)
        yield partial
        _sync_tree(partial)
        if target.exists():
            old = partial.with_suffix(REPLACED)
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(target)
        _sync(target.parent)
    finally:
        remove(partial)


def _fill(target: Path) -> Iterator[Path]:
    partial = target / f".{secrets.token_hex(6)}{PARTIAL}"
    try:
        partial.mkdir()
        yield partial
        _sync_tree(partial)
        complete = partial.with_suffix(COMPLETE)
        partial.rename(complete)  # from here on the next writer would finish it
        move_into(complete, target)
        _sync(target)
    finally:
        remove(partial)


def _is_fixed(folder: Path) -> bool:
    """Whether a folder must not be replaced by another: a process works in it, it is mounted, or its parent cannot be
    written."""
    try:
        here = Path.cwd().is_relative_to(folder)
    except OSError:
        here = False
    return here or os.path.ismount(folder) or not os.access(folder.parent, os.W_OK)


@contextmanager
def new_file(path: Path, *, claimed: bool = False, wait: float = 0.0) -> Iterator[Path]:
    """Yields a temporary path; after the block the file written there is synced and replaces `path`.

    The folder is synced too. After an error in the block, `path` is unchanged. What is no ordinary file, such as a
    pipe, is written into. claimed: whether the caller has claimed the path; wait: see `claim`. Busy if another process
    writes it, InputError for a folder, WorkError if the disk is full or cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a file is written", f"name the file: {path / 'NAME'}")
    try:
        if _is_special(path):
            with tempfile.TemporaryDirectory() as scratch:
                partial = Path(scratch) / "content"
                yield partial
                with path.open("wb") as file, partial.open("rb") as content:
                    shutil.copyfileobj(content, file)
            return
        with _claimed(path, claimed, wait=wait) as target:
            partial = partial_path(target)
            try:
                yield partial
                _sync(partial)
                partial.replace(target)
                _sync(target.parent)
            finally:
                partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise failure(path, error) from error


def write_file(path: Path, content: str | bytes) -> None:
    """Replaces a file by `content` (text as UTF-8), as `new_file` does; waits for another writer of it."""
    with new_file(path, wait=WAIT) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, which the caller has claimed: the next claim removes what a kill leaves."""
    folder = partial_path(target)
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


def remove_folder(folder: Path) -> None:
    """Deletes a folder. One that is deleted in part has a hidden name."""
    partial = partial_path(folder)
    folder.rename(partial)
    remove(partial)


def _claimed(path: Path, claimed: bool, *, parents: bool = False, wait: float = 0.0) -> AbstractContextManager[Path]:
    if claimed:
        return nullcontext(Path(os.path.realpath(path)))
    return claim(path, parents=parents, wait=wait)


def _is_special(path: Path) -> bool:
    """Whether a path is no place for a file of its own: a device, a pipe, an open descriptor."""
    place = os.path.abspath(path)
    return place.startswith(("/dev/", "/proc/")) or (path.exists() and not path.is_file() and not path.is_dir())


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

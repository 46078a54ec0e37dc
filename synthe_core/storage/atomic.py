"""Writing folders and files atomically: after a crash the old content or the new one is on disk, never a part."""

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
    """Yields a temporary folder beside `path`; after the block it is synced and replaces `path`.

    After an error in the block, `path` is unchanged. WorkError if the disk is full or cannot be written.
    """
    partial = _partial(path)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _sync_tree(partial)
        if path.exists():
            old = _partial(path.with_name(f"{path.name}.old"))
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


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; after the block the file written there is synced and replaces `path`.

    The folder is synced too. After an error in the block, `path` is unchanged. WorkError if the disk is full or cannot
    be written.
    """
    partial = _partial(path)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise failure(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Replaces a file by `content` (text as UTF-8), as `new_file` does."""
    with new_file(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def sweep(folder: Path) -> None:
    """Removes what an interrupted process left half written in `folder`.

    A process that died between the two renames of `new_folder` has left the old folder under its hidden name: it is
    renamed back.
    """
    for partial in folder.glob(f".*{PARTIAL}"):
        name = partial.name[1 : -len(PARTIAL)]
        if name.endswith(".old") and not (folder / name.removesuffix(".old")).exists():
            partial.rename(folder / name.removesuffix(".old"))
        elif partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def failure(path: Path, error: Exception) -> SyntheError:
    """The WorkError for a failed write of `path`."""
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text or "os error 122" in text:
        return WorkError(f"the disk is full: {path} could not be written", "free some space; what was saved is whole")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(text.split())
    return WorkError(f"{path} could not be written: {reason}", "what was saved before is whole")


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")


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

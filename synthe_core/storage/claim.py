"""One writer at a time: a lock on a path, which ends with the process that holds it, and what killed writers left."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthe_core.errors import InputError, SyntheError, WorkError

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

LOCK, PARTIAL, REPLACED, COMPLETE = ".synthe-lock", ".partial", ".replaced", ".complete"
TOKEN = r"[0-9a-f]{12}"
LEFTOVER = re.compile(rf"\.(.+)\.{TOKEN}\.(?:partial|replaced)|\.(.+)\.synthe-lock")
INSIDE = re.compile(rf"\.synthe-lock|\.{TOKEN}\.(?:partial|complete)")
"""What a writer keeps in a folder that it fills in place."""
POLL = 0.01  # seconds
UNNAMED = 2.0  # seconds in which the holder of a lock has written its name
MISSING = 5.0  # seconds in which a folder that others remove is made again
LAST = ("config.json", "manifest.json")
"""Files that say what a folder is: they come last into one that is filled in place."""


class Busy(InputError):
    """Another process writes there."""


@contextmanager
def claim(path: Path, doing: str = "writing", *, parents: bool = False, wait: float = 0.0) -> Iterator[Path]:
    """Within the block no other process may claim `path`; yields the path itself, of a link its target.

    doing: for the message to the others, as in "another process is writing X". parents: makes the folders above, and
    removes those that stay empty. wait: seconds after which Busy is raised, if the path stays claimed.

    The lock is the file .NAME.synthe-lock beside the target (in it, if nothing can be written beside it). The system
    releases the lock of a killed process; what such a process left half written is removed here. A file system without
    locks has no claims. WorkError if the lock cannot be made.
    """
    target, handle = Path(os.path.realpath(path)), None
    lock = _lock_of(target)
    made = [folder for folder in lock.parents if not folder.exists()] if parents else []
    try:
        try:
            handle = _acquire(lock, path, doing, time.monotonic() + wait, parents)
            if handle is not None:
                _recover(target)
        except OSError as error:
            raise failure(path, error) from error
        yield target
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)  # before it is released: the next one locks a file of its own
            os.close(handle)
        for folder in made:
            try:
                folder.rmdir()
            except OSError:
                break


def partial_path(target: Path) -> Path:
    """A name beside `target` for what is not finished, which no other writer uses."""
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}{PARTIAL}")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a writer of it keeps there."""
    return all(INSIDE.fullmatch(each.name) for each in folder.iterdir())


def sweep(folder: Path) -> None:
    """Removes what killed processes left half written in `folder`. What other processes are writing stays."""
    names = {match[1] or match[2] for each in folder.iterdir() if (match := LEFTOVER.fullmatch(each.name))}
    for name in names:
        try:
            with claim(folder / name):
                pass
        except Busy:
            continue


def move_into(complete: Path, target: Path) -> None:
    """Moves the content of a finished folder into `target`, files that say what it is last."""
    for each in sorted(complete.iterdir(), key=lambda each: LAST.index(each.name) if each.name in LAST else -1):
        os.replace(each, target / each.name)
    complete.rmdir()


def _lock_of(target: Path) -> Path:
    if not target.name or (target.is_dir() and not os.access(target.parent, os.W_OK)):
        return target / LOCK
    return target.with_name(f".{target.name}{LOCK}")


def _acquire(lock: Path, path: Path, doing: str, deadline: float, parents: bool) -> int | None:
    """The descriptor of the lock's file, or None on a file system without locks. Busy after the deadline."""
    while True:
        if parents:  # each time: another process may remove an empty folder
            lock.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if not parents or time.monotonic() >= deadline + MISSING:
                raise
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(handle, lock):  # or the one before has removed it meanwhile
                os.truncate(handle, 0)
                os.write(handle, f"{doing} {path}: pid {os.getpid()} on {os.uname().nodename}".encode())
                return handle
            os.close(handle)
        except BlockingIOError:
            holder = os.pread(handle, 4096, 0).decode("utf-8", "replace")
            os.close(handle)
            if time.monotonic() >= deadline + (0 if holder else UNNAMED):
                raise _busy(path, doing, holder) from None
            time.sleep(POLL)
        except OSError:
            os.close(handle)
            lock.unlink(missing_ok=True)
            return None


def _is_file(handle: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False


def _busy(path: Path, doing: str, holder: str) -> Busy:
    match = re.fullmatch(r"([a-z ]+) .*: pid (\d+) on (.*)", holder, re.DOTALL)
    doing, pid, host = match.groups() if match else (doing, "", "")
    who = f" (pid {pid})" if host == os.uname().nodename else f" (pid {pid} on {host})" if pid else ""
    return Busy(f"another process is {doing} {path}{who}", "wait until it has ended, or name another path")


def _recover(target: Path) -> None:
    """Removes what a killed writer of `target` left, or finishes or undoes its last step. The caller has the lock."""
    own = re.compile(rf"\.{re.escape(target.name)}\.{TOKEN}(\.partial|\.replaced)")
    for leftover in target.parent.iterdir() if target.parent.is_dir() else ():
        if (match := own.fullmatch(leftover.name)) is None:
            continue
        if match[1] == REPLACED and not target.exists():  # killed between the two renames
            leftover.rename(target)
        else:
            remove(leftover)
    for leftover in target.iterdir() if target.is_dir() else ():
        if leftover.name != LOCK and INSIDE.fullmatch(leftover.name):
            if leftover.suffix == COMPLETE:
                move_into(leftover, target)
            else:
                remove(leftover)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def failure(path: Path, error: Exception) -> SyntheError:
    """The WorkError for a failed write of `path`."""
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text or "os error 122" in text:
        return WorkError(f"the disk is full: {path} could not be written", "free some space; what was saved is whole")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(text.split())
    return WorkError(f"{path} could not be written: {reason}", "what was saved before is whole")

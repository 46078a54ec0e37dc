"""Which models of the cache a process uses, so that another one does not remove them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthe_core.storage.claim import Busy, failure

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

NAME = "synthe.lock"
_held: dict[Path, int] = {}
_guard = threading.Lock()


def hold(folder: Path) -> None:
    """Says until this process ends that it uses the repository in `folder`. Busy while another process removes it.

    The lock is a shared one beside the locks of huggingface_hub. A cache that may only be read has none.
    """
    with _guard:
        if folder in _held or fcntl is None:
            return
        try:
            handle = _open(folder)
        except OSError:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise Busy(f"another process is removing {folder.name}", "repeat the command when it has ended") from None
        except OSError:  # a file system without locks
            os.close(handle)
            return
        _held[folder] = handle


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the block no other process uses the repository in `folder`. Busy if one does."""
    with _guard:
        if (own := _held.pop(folder, None)) is not None:
            os.close(own)
        handle = None
        if fcntl is not None:
            try:
                handle = _open(folder)
            except OSError as error:
                raise failure(folder, error) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise Busy(f"another process is using {folder.name}", "end it first") from None
            except OSError:
                pass
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)


def _open(folder: Path) -> int:
    lock = folder.parent / ".locks" / folder.name / NAME
    lock.parent.mkdir(parents=True, exist_ok=True)
    return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)

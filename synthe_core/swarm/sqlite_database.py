"""A swarm's database in one SQLite file, with a write-ahead log (https://www.sqlite.org/wal.html)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, SyntheError, WorkError
from synthe_core.swarm.database import BUSY_TIMEOUT, CONNECTIONS, locked
from synthe_core.swarm.write_queue import WriteQueue

try:
    from sqlalchemy import Connection, create_engine, event, text
    from sqlalchemy.pool import QueuePool
except ModuleNotFoundError:
    raise InputError("a swarm's database needs SQLAlchemy", "install it: pip install 'synthe[swarm]'") from None

WRITE = "synthe_write"
"""The execution option of a connection that writes."""
_ARGUMENTS = {"timeout": BUSY_TIMEOUT, "check_same_thread": False}


class SQLiteDatabase:
    """path: the file; it is made where its folder exists. max_bytes: its largest size; a transaction that needs more
    fails whole. None: no limit."""

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        if not path.parent.is_dir():
            raise InputError(f"no such folder: {path.parent}", "make a swarm: synthe swarm init NAME --base MODEL")
        self.path, self.max_bytes, self.name = path, max_bytes, str(path)
        self.engine = create_engine(
            f"sqlite:///{path}", poolclass=QueuePool, pool_size=CONNECTIONS, max_overflow=-1, connect_args=_ARGUMENTS
        )
        event.listen(self.engine, "connect", self._configure)
        event.listen(self.engine, "begin", _begin)
        self._open_queue()

    def options(self, write: bool) -> Mapping[str, Any]:
        return {WRITE: write}

    @contextmanager
    def turn(self) -> Iterator[None]:
        waiting = ExitStack()
        try:
            waiting.enter_context(self._queue.hold(BUSY_TIMEOUT))
        except TimeoutError:
            raise locked(self.name) from None
        with waiting:
            yield

    def failure(self, said: str) -> SyntheError:
        if "not a database" in said or "malformed" in said:
            return InputError(f"{self.path} is damaged, or no SQLite database: {said}", "restore a copy of it")
        if "full" in said and self.max_bytes is not None:
            hint = f"it may have {self.max_bytes} bytes: raise the limit, or delete what is not needed"
            return WorkError(f"{self.path} is full", hint)
        if "locked" in said:
            return locked(self.name)
        return WorkError(f"{self.path}: {said}", "check the disk and the file's permissions")

    def faults(self, connection: Connection) -> list[str]:
        """Damaged pages, and rows that refer to nothing."""
        lines = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check"))]
        dangling = connection.execute(text("PRAGMA foreign_key_check")).all()
        return [line for line in lines if line != "ok"] + [
            f"{row[0]} {row[1]} refers to no {row[2]}" for row in dangling
        ]

    def clean(self) -> None:
        """Moves the write-ahead log into the file and empties it: what was deleted is then on the disk nowhere.

        WorkError if somebody reads an earlier moment for longer than the time to wait.
        """
        with self.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            (is_busy, *_) = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise WorkError(f"{self.path} is being read: its log could not be emptied", "try again, or end the reader")

    def size(self) -> int:
        """Of the file and its log."""
        files = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def forked(self) -> None:
        self.engine.dispose(close=False)
        self._open_queue()

    def _open_queue(self) -> None:
        try:
            self._queue = WriteQueue(self.path)
        except OSError as error:
            raise WorkError(f"{self.path} cannot be written: {error.strerror}", "check its folder") from error

    def _configure(self, connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where `_begin` says, not where the driver guesses
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT * 1000)}")
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")
        if self.max_bytes is not None:
            (page,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute(f"PRAGMA max_page_count={max(1, self.max_bytes // page)}")


def _use_write_ahead_log(connection: Any) -> None:
    """SQLite does not wait when two processes switch a new file at once: the second tries again."""
    end = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    """A writer takes the lock at once: a reader that becomes a writer could fail instead of waiting."""
    write = connection.get_execution_options().get(WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

"""The database of a swarm: one SQLite file that threads and processes read and write at once.

What is promised (SQLite's write-ahead log, https://www.sqlite.org/wal.html): a transaction is committed whole or not at
all; what was committed survives the kill of any process; readers never wait for writers, and see one moment. After a
power cut the last transactions may be missing, never a part of one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, SyntheError, WorkError
from synthe_core.swarm.write_queue import WriteQueue

try:
    from sqlalchemy import (
        Column,
        Connection,
        Integer,
        MetaData,
        String,
        Table,
        create_engine,
        event,
        select,
        text,
    )
    from sqlalchemy.exc import DatabaseError, IntegrityError
    from sqlalchemy.pool import QueuePool
except ModuleNotFoundError:
    raise InputError("a swarm's database needs SQLAlchemy", "install it: pip install 'synthe[swarm]'") from None


class LimitReached(WorkError):
    """There is as much stored as may be: of facts, messages or pairs."""


BUSY_TIMEOUT = 60.0  # seconds to wait for another process's transaction
CONNECTIONS = 8  # kept open; more are opened when more threads need one
WRITE = "synthe_write"  # the execution option of a connection that writes

metadata = MetaData()
"""Every table of a swarm. A table is defined beside the code that owns it."""

_schemas = Table(
    "schemas",
    metadata,
    Column("name", String, primary_key=True),
    Column("version", Integer, nullable=False),
)


@dataclass(frozen=True)
class Schema:
    """The tables of one owner, and how a database of an earlier version gets them.

    name:       the owner, such as `knowledge`.
    migrations: the function at index i takes version i to version i + 1. Version 0 has no tables.
    """

    name: str
    migrations: tuple[Callable[[Connection], None], ...]

    @property
    def version(self) -> int:
        return len(self.migrations)


class Store:
    """A swarm's database. One object serves all threads of a process.

    path:      the file; it is made where its folder exists.
    max_bytes: the largest size of the file; a transaction that needs more fails whole. None: no limit.
    clock:     seconds since 1970.

    InputError for a file that is no database, WorkError if it cannot be read or written.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None, clock: Callable[[], float] = time.time) -> None:
        if not path.parent.is_dir():
            raise InputError(f"no such folder: {path.parent}", "make a swarm: synthe swarm init NAME --base MODEL")
        self.path, self.max_bytes, self.now = path, max_bytes, clock
        self._engine = create_engine(
            f"sqlite:///{path}", poolclass=QueuePool, pool_size=CONNECTIONS, max_overflow=-1, connect_args=_ARGUMENTS
        )
        event.listen(self._engine, "connect", self._configure)
        event.listen(self._engine, "begin", _begin)
        self._reset()
        with self.transaction() as connection:
            _schemas.create(connection, checkfirst=True)

    def _reset(self) -> None:
        self._pid = os.getpid()
        try:
            self._queue = WriteQueue(self.path)
        except OSError as error:
            raise WorkError(f"{self.path} cannot be written: {error.strerror}", "check its folder") from error
        self._current = threading.local()

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

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yields a connection whose changes are committed together after the block, or undone after an error.

        Others see none of them before. Within another transaction of this thread it is a part of that one, which is
        undone alone after an error.
        """
        self._check_process()
        if (outer := self._connection) is not None:
            if not outer.get_execution_options().get(WRITE):
                raise RuntimeError("a write within a read")
            with self._translated(), outer.begin_nested():
                yield outer
            return
        with self._turn(), self._opened(write=True) as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yields a connection that sees the database as it is at the first statement, whatever is written meanwhile.

        Within a transaction of this thread it sees that transaction's changes.
        """
        self._check_process()
        if (outer := self._connection) is not None:
            yield outer
            return
        with self._opened(write=False) as connection:
            yield connection

    @contextmanager
    def _opened(self, write: bool) -> Iterator[Connection]:
        with self._translated(), self._engine.connect() as connection:
            connection.execution_options(**{WRITE: write})
            with connection.begin():
                self._current.connection = connection
                try:
                    yield connection
                finally:
                    self._current.connection = None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        waiting = ExitStack()
        try:
            waiting.enter_context(self._queue.hold(BUSY_TIMEOUT))
        except TimeoutError:
            raise self._failure("locked") from None
        with waiting:
            yield

    @property
    def _connection(self) -> Connection | None:
        return getattr(self._current, "connection", None)

    def _check_process(self) -> None:
        """A connection must not be used on both sides of a fork."""
        if self._pid != os.getpid():
            self._engine.dispose(close=False)
            self._reset()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the database itself are one line; those of a constraint are the caller's."""
        try:
            yield
        except IntegrityError:
            raise
        except DatabaseError as error:
            raise self._failure(str(error.orig)) from error

    def _failure(self, said: str) -> SyntheError:
        if "not a database" in said or "malformed" in said:
            return InputError(f"{self.path} is damaged, or no SQLite database: {said}", "restore a copy of it")
        if "full" in said and self.max_bytes is not None:
            hint = f"it may have {self.max_bytes} bytes: raise the limit, or delete what is not needed"
            return WorkError(f"{self.path} is full", hint)
        if "locked" in said:
            hint = "a process keeps a transaction open: end it"
            return WorkError(f"{self.path} was locked for {BUSY_TIMEOUT:.0f} s by another process", hint)
        return WorkError(f"{self.path}: {said}", "check the disk and the file's permissions")

    def prepare(self, schema: Schema) -> None:
        """Makes the tables of `schema`, or migrates them to its version, in one transaction.

        InputError for tables of a later version than this program knows.
        """
        version = _schemas.c.version
        query = select(version).where(_schemas.c.name == schema.name)
        with self.read() as connection:
            if connection.scalar(query) == schema.version:
                return
        with self.transaction() as connection:
            stored = connection.scalar(query)
            if stored is None:
                connection.execute(_schemas.insert().values(name=schema.name, version=0))
            if (stored or 0) > schema.version:
                raise InputError(
                    f"{self.path} has version {stored} of {schema.name}, and this synthe knows {schema.version}",
                    "install the synthe that wrote it, or a later one",
                )
            for migrate in schema.migrations[stored or 0 :]:
                migrate(connection)
            connection.execute(_schemas.update().where(_schemas.c.name == schema.name).values(version=schema.version))

    def faults(self) -> list[str]:
        """What is wrong with the file, a line each: damaged pages, rows that refer to nothing. Empty if it is whole."""
        with self.read() as connection:
            lines = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check"))]
            dangling = connection.execute(text("PRAGMA foreign_key_check")).all()
        return [line for line in lines if line != "ok"] + [
            f"{row[0]} {row[1]} refers to no {row[2]}" for row in dangling
        ]

    def flush(self) -> None:
        """Moves the write-ahead log into the file and empties it: what was deleted is then on the disk nowhere.

        WorkError if somebody reads an earlier moment for longer than the time to wait.
        """
        self._check_process()
        if self._connection is not None:
            raise RuntimeError("a flush within a transaction")
        with self._turn(), self._translated(), self._engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            (is_busy, *_) = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise WorkError(f"{self.path} is being read: its log could not be emptied", "try again, or end the reader")

    def size(self) -> int:
        """Bytes of the file and its log."""
        files = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Closes the connections that no thread uses. The object can be used again."""
        self._check_process()
        self._engine.dispose()


_ARGUMENTS = {"timeout": BUSY_TIMEOUT, "check_same_thread": False}


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

"""The database of a swarm, which threads and processes read and write at once: a file of SQLite, or Postgres.

What is promised: a transaction is committed whole or not at
all; what was committed survives the kill of any process; readers never wait for writers, and see one moment. After a
power cut the last transactions may be missing, never a part of one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, WorkError
from synthe_core.swarm.database import Database
from synthe_core.swarm.postgres_database import PostgresDatabase
from synthe_core.swarm.sqlite_database import SQLiteDatabase

try:
    from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, select
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.exc import DatabaseError, IntegrityError
except ModuleNotFoundError:
    raise InputError("a swarm's database needs SQLAlchemy", "install it: pip install 'synthe[swarm]'") from None


class LimitReached(WorkError):
    """There is as much stored as may be: of facts, messages or pairs."""


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

    location:  a file of SQLite, which is made where its folder exists, or the URL of a Postgres database.
    max_bytes: the largest size of the file; a transaction that needs more fails whole. None: no limit. A server has
               limits of its own.
    clock:     seconds since 1970.

    InputError for a file that is no database, WorkError if it cannot be read or written.
    """

    def __init__(
        self, location: Path | str, *, max_bytes: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.database: Database = (
            SQLiteDatabase(location, max_bytes) if isinstance(location, Path) else PostgresDatabase(location)
        )
        self.location, self.now = location, clock
        self._reset()
        with self.transaction() as connection:
            _schemas.create(connection, checkfirst=True)

    @property
    def path(self) -> Path:
        """The file. ValueError for a database on a server."""
        if not isinstance(self.location, Path):
            raise ValueError(f"{self.database.name} is no file")
        return self.location

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._current = threading.local()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yields a connection whose changes are committed together after the block, or undone after an error.

        Others see none of them before. Within another transaction of this thread it is a part of that one, which is
        undone alone after an error.
        """
        self._check_process()
        if (outer := self._connection) is not None:
            if not self._current.write:
                raise RuntimeError("a write within a read")
            with self._translated(), outer.begin_nested():
                yield outer
            return
        with self.database.turn(), self._opened(write=True) as connection:
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
        with self._translated(), self.database.engine.connect() as connection:
            connection.execution_options(**self.database.options(write))
            with connection.begin():
                self._current.connection, self._current.write = connection, write
                try:
                    yield connection
                finally:
                    self._current.connection = None

    @property
    def _connection(self) -> Connection | None:
        return getattr(self._current, "connection", None)

    def _check_process(self) -> None:
        """A connection must not be used on both sides of a fork."""
        if self._pid != os.getpid():
            self.database.forked()
            self._reset()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the database itself are one line; those of a constraint are the caller's."""
        try:
            yield
        except IntegrityError:
            raise
        except DatabaseError as error:
            raise self.database.failure(str(error.orig)) from error

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
                    f"{self.database.name} has version {stored} of {schema.name}, and this synthe knows"
                    f" {schema.version}",
                    "install the synthe that wrote it, or a later one",
                )
            for migrate in schema.migrations[stored or 0 :]:
                migrate(connection)
            connection.execute(_schemas.update().where(_schemas.c.name == schema.name).values(version=schema.version))

    def faults(self) -> list[str]:
        """What is wrong with the stored data, a line each: damaged pages, rows that refer to nothing. Empty if it is
        whole."""
        with self.read() as connection:
            return self.database.faults(connection)

    def flush(self) -> None:
        """After it, what was deleted is nowhere in the file or its log; on a server its place may be used again.

        WorkError if somebody reads an earlier moment for longer than the time to wait.
        """
        self._check_process()
        if self._connection is not None:
            raise RuntimeError("a flush within a transaction")
        with self.database.turn(), self._translated():
            self.database.clean()

    def size(self) -> int:
        """Bytes of the file and its log, or of the tables on a server."""
        self._check_process()
        return self.database.size()

    def close(self) -> None:
        """Closes the connections that no thread uses. The object can be used again."""
        self._check_process()
        self.database.engine.dispose()


def insert(connection: Connection, table: Table) -> Any:
    """An insertion that can say what happens where the row is there already, as the connection's database has it."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)

"""A swarm's database on a Postgres server, which several machines share.

One transaction writes at a time, as in SQLite: an advisory lock of the schema orders the writers of all machines, so
that what a transaction has read is still so when it writes. Readers see one moment (repeatable read), and wait for
nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from synthe_core.errors import InputError, SyntheError, WorkError
from synthe_core.swarm.database import BUSY_TIMEOUT, CONNECTIONS, locked

try:
    from sqlalchemy import Connection, create_engine, event, make_url, text
    from sqlalchemy.exc import ArgumentError
except ModuleNotFoundError:
    raise InputError("a swarm's database needs SQLAlchemy", "install it: pip install 'synthe[swarm]'") from None

DRIVER = "postgresql+psycopg"
WRITE = "synthe_write"
"""The execution option of a connection that writes."""
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('synthe swarm ' || current_schema(), 0))"
_CONNECT_SECONDS = 10


class PostgresDatabase:
    """url: as SQLAlchemy has it, of a database or schema of the swarm's own. InputError for another URL."""

    def __init__(self, url: str) -> None:
        hint = "write postgresql://USER@HOST/DATABASE; the password is read from PGPASSWORD or a .pgpass file"
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise InputError("the database is no SQLAlchemy URL", hint) from None
        if parsed.drivername not in ("postgresql", "postgres", DRIVER):
            raise InputError(f"a swarm's database is a file of SQLite or on Postgres, not {parsed.drivername}", hint)
        try:
            import psycopg
        except ModuleNotFoundError:
            raise InputError("Postgres needs psycopg", "install it: pip install 'synthe[swarm-postgres]'") from None
        self.name = parsed.render_as_string(hide_password=True)
        self.engine = create_engine(
            parsed.set(drivername=DRIVER),
            pool_size=CONNECTIONS,
            max_overflow=-1,
            pool_pre_ping=True,
            connect_args={"connect_timeout": _CONNECT_SECONDS},
        )

        class TextDumper(psycopg.types.string.StrDumper):
            """Postgres stores no NUL, which users may send."""

            def dump(self, obj: str) -> Any:
                return super().dump(obj.replace("\0", "\ufffd"))

        event.listen(self.engine, "connect", lambda raw, _: raw.adapters.register_dumper(str, TextDumper))
        event.listen(self.engine, "begin", _begin)

    def options(self, write: bool) -> Mapping[str, Any]:
        level = "READ COMMITTED" if write else "REPEATABLE READ"
        return {WRITE: write, "isolation_level": level, "postgresql_readonly": not write}

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The lock is the transaction's own, see `_begin`."""
        yield

    def failure(self, said: str) -> SyntheError:
        line = " ".join(said.split())
        if "lock timeout" in line:
            return locked(self.name)
        return WorkError(f"{self.name}: {line}", "check that the server runs, the URL, and the password")

    def faults(self, connection: Connection) -> list[str]:
        """Indexes that are not valid, and constraints that were never checked; the server checks the others."""
        indexes = "SELECT indexrelid::regclass || ' is not valid' FROM pg_index WHERE NOT indisvalid"
        constraints = "SELECT conname || ' was not checked' FROM pg_constraint WHERE NOT convalidated"
        return [str(row[0]) for query in (indexes, constraints) for row in connection.execute(text(query))]

    def clean(self) -> None:
        """Frees the place of deleted rows. The server may have them in its log and its backups still."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT", **{WRITE: None}) as connection:
            connection.execute(text("VACUUM"))

    def size(self) -> int:
        """Of the tables of the schema with their indexes."""
        query = (
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        )
        with self.engine.connect() as connection:
            return int(connection.scalar(text(query)) or 0)

    def forked(self) -> None:
        self.engine.dispose(close=False)


def _begin(connection: Connection) -> None:
    """A writer waits for its turn before its first statement."""
    if connection.get_execution_options().get(WRITE):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(BUSY_TIMEOUT * 1000)}")
        connection.exec_driver_sql(_LOCK)

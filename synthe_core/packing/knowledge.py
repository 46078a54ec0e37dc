"""knowledge/graph.sqlite: copied from a database that may be in use, and opened read-only."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from synthe_core.errors import InputError
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.members import KNOWLEDGE

STEP = 1000
MAX_STEPS = 50_000_000  # of SQLite's virtual machine, for an untrusted database


def copy_database(source: Path, target: Path) -> None:
    """Makes a consistent copy, by SQLite's backup, of a database that others may be writing to.

    Nothing is written to the source, but it is opened for writing: a read-only reader of a database with a write-ahead
    log would leave the log's files behind. The copy has no write-ahead log, because it is only read.
    """
    if not source.is_file():
        raise InputError(f"no such database: {source}", "--knowledge names an SQLite file")
    try:
        mode = "rw" if os.access(source, os.W_OK) else "ro"
        with closing(_open(source, mode)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
            copy.commit()
    except sqlite3.Error as error:
        raise InputError(f"{source} cannot be copied: {error}", "--knowledge names an SQLite file") from None


@contextmanager
def open_database(bundle: Bundle) -> Iterator[sqlite3.Connection]:
    """A file's knowledge, read-only, in a temporary copy, because SQLite cannot open a range of a file."""
    bundle.check(KNOWLEDGE)
    with tempfile.TemporaryDirectory(prefix="synthe-") as folder:
        copy = Path(folder) / "graph.sqlite"
        with copy.open("wb") as file:
            for piece in bundle.container.pieces(KNOWLEDGE):
                file.write(piece)
        with closing(_guarded(copy)) as connection:
            yield connection


def check_database(path: Path) -> dict[str, int]:
    """The number of rows of every table. InputError if the database is damaged, or takes too many steps."""
    try:
        with closing(_guarded(path)) as connection:
            return _count(connection)
    except (sqlite3.Error, UnicodeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is damaged: SQLite says: {str(error)[:100]}", "get another copy") from None


def tables(bundle: Bundle) -> dict[str, int]:
    """The number of rows of every table of the database in a file."""
    try:
        with open_database(bundle) as connection:
            return _count(connection)
    except (sqlite3.Error, UnicodeError, ValueError, OverflowError) as error:
        raise bundle.damaged(KNOWLEDGE, f"SQLite says: {str(error)[:100]}") from None


def _count(connection: sqlite3.Connection) -> dict[str, int]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'")
    counts = {}
    for (name,) in sorted(rows.fetchall()):
        quoted = '"' + str(name).replace('"', '""') + '"'
        counts[str(name)] = int(connection.execute(f"SELECT count(*) FROM {quoted}").fetchone()[0])
    return counts


def _guarded(path: Path) -> sqlite3.Connection:
    """Opens an untrusted database: no code of its schema runs, and the number of steps is limited."""
    connection = _open(path, "ro&immutable=1")
    remaining = MAX_STEPS

    def abort() -> int:
        nonlocal remaining
        remaining -= STEP
        return int(remaining < 0)

    connection.set_progress_handler(abort, STEP)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    return connection


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True)

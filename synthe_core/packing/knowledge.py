"""knowledge/graph.sqlite: copied whole out of a database that may be in use, and opened for reading only."""

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
WORK = 50_000_000  # steps of SQLite's machine that looking into a stranger's database may take


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy, by SQLite's backup, of a database that others may be writing to.

    Nothing is written to the source, but it is opened as one that may: a reader of a database with a write-ahead log
    would leave the log's files behind. The copy keeps no such log, which a file that is only read could not have.
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
def opened(bundle: Bundle) -> Iterator[sqlite3.Connection]:
    """A file's knowledge, read-only: from a temporary copy, because SQLite opens no stretch of a file."""
    bundle.check(KNOWLEDGE)
    with tempfile.TemporaryDirectory(prefix="synthe-") as folder:
        copy = Path(folder) / "graph.sqlite"
        with copy.open("wb") as file:
            for piece in bundle.container.pieces(KNOWLEDGE):
                file.write(piece)
        with closing(_guarded(copy)) as connection:
            yield connection


def check_database(path: Path) -> dict[str, int]:
    """Name and number of rows of every table; InputError where it is damaged, or made to keep one busy."""
    try:
        with closing(_guarded(path)) as connection:
            return _count(connection)
    except (sqlite3.Error, UnicodeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is damaged: SQLite says: {str(error)[:100]}", "get another copy") from None


def tables(bundle: Bundle) -> dict[str, int]:
    """The same of the database in a file."""
    try:
        with opened(bundle) as connection:
            return _count(connection)
    except (sqlite3.Error, UnicodeError, ValueError, OverflowError) as error:
        raise bundle.damaged(KNOWLEDGE, f"SQLite says: {str(error)[:100]}") from None


def _count(connection: sqlite3.Connection) -> dict[str, int]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'")
    found = {}
    for (name,) in sorted(rows.fetchall()):
        quoted = '"' + str(name).replace('"', '""') + '"'
        found[str(name)] = int(connection.execute(f"SELECT count(*) FROM {quoted}").fetchone()[0])
    return found


def _guarded(path: Path) -> sqlite3.Connection:
    """A stranger's database: nothing in its schema is run, and it has only so much of our time."""
    connection = _open(path, "ro&immutable=1")
    left = WORK

    def tired() -> int:
        nonlocal left
        left -= STEP
        return int(left < 0)

    connection.set_progress_handler(tired, STEP)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    return connection


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True)

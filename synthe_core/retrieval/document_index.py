"""An index of documents: one SQLite file with their passages, a full-text index, and a vector for each passage.

Every document is replaced or removed in one transaction, so an interrupted run leaves whole documents. Processes may
read and write one file at once: they wait for each other. Between transactions the index is that one file alone, which
can be moved, and read where it cannot be written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synthe_core.data.document_text.passages import Passage
from synthe_core.errors import InputError, SyntheError, WorkError
from synthe_core.retrieval.words import match_any, query_words

VERSION = 2
APPLICATION = 0x53594E44  # "SYND" in the file's header: an index, and no other database
MAGIC = b"SQLite format 3\0"
BUSY_TIMEOUT = 60.0  # seconds to wait for another process's transaction
_TABLES = """
CREATE TABLE documents (
  id INTEGER PRIMARY KEY, source TEXT NOT NULL UNIQUE, name TEXT NOT NULL, title TEXT NOT NULL, digest TEXT NOT NULL,
  size INTEGER NOT NULL, modified INTEGER NOT NULL
);
CREATE TABLE passages (
  id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
  number INTEGER NOT NULL, heading TEXT NOT NULL, text TEXT NOT NULL,
  page INTEGER
);
CREATE INDEX passages_of_document ON passages(document);
CREATE VIRTUAL TABLE passages_text USING fts5(
  heading, text, content='passages', content_rowid='id', tokenize='porter unicode61'
);
CREATE TRIGGER passage_added AFTER INSERT ON passages BEGIN
  INSERT INTO passages_text(rowid, heading, text) VALUES (new.id, new.heading, new.text);
END;
CREATE TRIGGER passage_removed AFTER DELETE ON passages BEGIN
  INSERT INTO passages_text(passages_text, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text);
END;
CREATE TABLE vectors (
  passage INTEGER NOT NULL REFERENCES passages(id) ON DELETE CASCADE, embedder TEXT NOT NULL, vector BLOB NOT NULL,
  PRIMARY KEY (passage, embedder)
) WITHOUT ROWID;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class IndexedDocument(NamedTuple):
    """source: the absolute path of the file. name: the path that is shown. digest: SHA-256 of its bytes.

    size, modified: of the file, bytes and nanoseconds since 1970.
    """

    source: str
    name: str
    title: str
    digest: str
    size: int
    modified: int


class StoredPassage(NamedTuple):
    """heading: the document's title and the headings above the passage, with " > " between them.

    number: of the passage in its document, from 0. page: of a PDF, on which it begins, from 1.
    """

    id: int
    document: str
    title: str
    number: int
    heading: str
    text: str
    page: int | None = None


def is_index(path: Path) -> bool:
    """Whether a file is an SQLite database, and so an index rather than a document."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class DocumentIndex:
    """The index in the file `path`, which is made with `create`. For any thread.

    InputError for a missing file, for what is no index, and for one of another version; WorkError for a failing disk.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if not create and not path.is_file():
            raise InputError(f"no such index: {path}", "make it: synthe documents index FOLDER --out docs.db")
        if not path.parent.is_dir():
            raise InputError(f"no such folder: {path.parent}", "make it first, or choose another --out")
        with self._transaction() if create else self._read() as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if create and not tables:
                _create(connection)
            elif application != APPLICATION:
                raise InputError(f"{path} is no index of documents", "name a file that synthe documents index has made")
            elif version > VERSION:
                raise InputError(f"{path} is of version {version}, and this synthe reads {VERSION}", "update synthe")
            elif version < VERSION:
                hint = "delete it, and index the documents again"
                raise InputError(f"{path} is of version {version}, and this synthe reads {VERSION}", hint)

    def documents(self) -> list[IndexedDocument]:
        """In the order of their names."""
        query = "SELECT source, name, title, digest, size, modified FROM documents ORDER BY name, source"
        with self._read() as connection:
            return [IndexedDocument(*row) for row in connection.execute(query)]

    def counts(self) -> dict[str, int]:
        """{document's source: its number of passages}."""
        query = "SELECT source, count(passages.id) FROM documents LEFT JOIN passages ON document = documents.id"
        with self._read() as connection:
            return dict(connection.execute(f"{query} GROUP BY documents.id").fetchall())

    def put(self, document: IndexedDocument, passages: Sequence[Passage]) -> None:
        """Adds a document, or replaces the one of the same source, with its passages and vectors."""
        with self._transaction() as connection:
            _delete(connection, [document.source])
            columns = "source, name, title, digest, size, modified"
            inserted = connection.execute(f"INSERT INTO documents({columns}) VALUES (?, ?, ?, ?, ?, ?)", document)
            rows = [
                (inserted.lastrowid, each.number, _heading(document.title, each.heading), each.text, each.page)
                for each in passages
            ]
            connection.executemany(
                "INSERT INTO passages(document, number, heading, text, page) VALUES (?, ?, ?, ?, ?)", rows
            )

    def touch(self, document: IndexedDocument) -> None:
        """Records the size, time and name of a file whose content is as it was."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE documents SET name = ?, size = ?, modified = ? WHERE source = ?",
                (document.name, document.size, document.modified, document.source),
            )

    def remove(self, sources: Sequence[str]) -> None:
        """Removes documents; what they contained is overwritten in the file."""
        with self._transaction() as connection:
            _delete(connection, sources)
            connection.execute("INSERT INTO passages_text(passages_text) VALUES ('optimize')")  # else words remain

    def by_words(self, text: str, limit: int) -> list[int]:
        """The ids of passages that share a word with `text`, by BM25 over headings (weight 2) and text, best first."""
        words = query_words(text)
        if not words:
            return []
        query = (
            "SELECT rowid FROM passages_text WHERE passages_text MATCH ? ORDER BY bm25(passages_text, 2.0, 1.0), rowid"
        )
        with self._read() as connection:
            return [id for (id,) in connection.execute(f"{query} LIMIT ?", (match_any(words), limit))]

    def passages(self, ids: Sequence[int]) -> list[StoredPassage]:
        """In the order of `ids`; those that were removed meanwhile are left out."""
        query = (
            "SELECT passages.id, name, title, number, heading, text, page FROM passages JOIN documents"
            " ON documents.id = document WHERE passages.id = ?"
        )
        with self._read() as connection:
            rows = [connection.execute(query, (id,)).fetchone() for id in ids]
        return [StoredPassage(*row) for row in rows if row is not None]

    def without_vector(self, embedder: str) -> list[tuple[int, str]]:
        """(id, heading and text) of the passages that have no vector of an embedder."""
        query = (
            "SELECT id, heading || char(10) || text FROM passages WHERE id NOT IN"
            " (SELECT passage FROM vectors WHERE embedder = ?) ORDER BY id"
        )
        with self._read() as connection:
            return connection.execute(query, (embedder,)).fetchall()

    def put_vectors(self, embedder: str, ids: Iterable[int], vectors: np.ndarray) -> None:
        """Stores float vectors [N, D] as float16. Those of passages that were removed meanwhile are left out."""
        rows = [(embedder, row.astype("<f2").tobytes(), id) for id, row in zip(ids, vectors, strict=True)]
        statement = "INSERT OR REPLACE INTO vectors SELECT id, ?, ? FROM passages WHERE id = ?"
        with self._transaction() as connection:
            connection.executemany(statement, rows)

    def vectors(self, embedder: str) -> tuple[np.ndarray, np.ndarray]:
        """int64 [N] ids and float32 [N, D] vectors of an embedder; [0, 0] where it has none."""
        query = "SELECT passage, vector FROM vectors WHERE embedder = ? ORDER BY passage"
        with self._read() as connection:
            rows = connection.execute(query, (embedder,)).fetchall()
        if not rows:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        matrix = np.frombuffer(b"".join(vector for _, vector in rows), "<f2").reshape(len(rows), -1)
        return np.array([id for id, _ in rows]), matrix.astype(np.float32)

    def version(self) -> int:
        """A number that changes with every transaction of any process: SQLite's file change counter."""
        with self.path.open("rb") as file:  # https://www.sqlite.org/fileformat.html, section 1.3.7
            return int.from_bytes(file.read(28)[24:], "big")

    def forget_vectors(self, embedder: str) -> None:
        """Removes the vectors of every other embedder."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM vectors WHERE embedder <> ?", (embedder,))

    def setting(self, name: str) -> str | None:
        with self._read() as connection:
            row = connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set(self, name: str, value: str) -> None:
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._read() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for each use: opening one takes some 0.1 ms, and no thread shares it."""
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None)) as connection:
                connection.execute("PRAGMA foreign_keys=ON")
                connection.execute("PRAGMA secure_delete=ON")
                yield connection
        except sqlite3.DatabaseError as error:
            raise _failure(self.path, error) from error


def _create(connection: sqlite3.Connection) -> None:
    for statement in _statements(_TABLES):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION}")
    connection.execute(f"PRAGMA user_version={VERSION}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _delete(connection: sqlite3.Connection, sources: Iterable[str]) -> None:
    for source in sources:
        connection.execute("DELETE FROM documents WHERE source = ?", (source,))


def _heading(title: str, headings: tuple[str, ...]) -> str:
    return " > ".join([title, *(each for each in headings if each != title)])


def _failure(path: Path, error: sqlite3.DatabaseError) -> SyntheError:
    said = str(error)
    if "not a database" in said or "malformed" in said:
        return InputError(f"{path} is damaged, or no index of documents", "delete it and index the documents again")
    if "locked" in said:
        return WorkError(f"{path} was locked for {BUSY_TIMEOUT:.0f} s by another process", "end it, and try again")
    return WorkError(f"{path}: {said}", "check the disk and the file's permissions")

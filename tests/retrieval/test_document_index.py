"""The file of an index: whole documents, nothing left of what was removed, and other files refused."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from synthe_core.data.document_text.passages import Passage
from synthe_core.errors import InputError, WorkError
from synthe_core.retrieval.document_index import DocumentIndex, IndexedDocument


def entry(name: str = "a.md") -> IndexedDocument:
    return IndexedDocument(f"/docs/{name}", name, "A", "0" * 64, 10, 1)


def put(index: DocumentIndex, name: str, *texts: str) -> None:
    index.put(entry(name), [Passage(text, ("A",), number) for number, text in enumerate(texts)])


@pytest.fixture
def index(tmp_path: Path) -> DocumentIndex:
    return DocumentIndex(tmp_path / "docs.db", create=True)


def test_a_document_replaces_itself(index: DocumentIndex) -> None:
    put(index, "a.md", "wolves", "lambs")
    put(index, "a.md", "sheep")
    assert index.by_words("wolves lambs", 9) == [] and len(index.by_words("sheep", 9)) == 1
    assert index.counts() == {"/docs/a.md": 1} and [each.name for each in index.documents()] == ["a.md"]


def test_what_was_removed_is_nowhere_in_the_file(index: DocumentIndex) -> None:
    put(index, "a.md", "the password is xylophone")
    put(index, "b.md", "other words")
    assert b"xylophone" in index.path.read_bytes()
    index.remove(["/docs/a.md"])
    assert b"xylophon" not in index.path.read_bytes()  # nor its stem, in the full-text index
    assert index.by_words("xylophone", 9) == [] and len(index.by_words("other", 9)) == 1


def test_words_match_by_their_stems_and_operators_are_words(index: DocumentIndex) -> None:
    put(index, "a.md", "He merges branches", "NOT a OR b")
    assert len(index.by_words("merging a branch", 9)) == 1
    for query in ('"', "a AND", "NEAR(x", "*", "heading:merge", "", "  ", "\x00", "who are you"):
        index.by_words(query, 9)
    assert index.by_words("or not", 9) == index.by_words("OR", 9)


def test_vectors_follow_their_passages(index: DocumentIndex) -> None:
    put(index, "a.md", "one", "two")
    ids = [id for id, _ in index.without_vector("m")]
    index.put_vectors("m", [*ids, 999], np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert index.without_vector("m") == [] and len(index.without_vector("other")) == 2
    stored, rows = index.vectors("m")
    assert stored.tolist() == ids and rows.tolist() == [[1, 2], [3, 4]]
    put(index, "a.md", "three")
    assert index.vectors("m")[1].shape == (0, 0)
    index.put_vectors("m", [id for id, _ in index.without_vector("m")], np.ones((1, 2)))
    index.forget_vectors("other")
    assert len(index.vectors("m")[0]) == 0


def test_a_failing_transaction_leaves_the_document_of_before(index: DocumentIndex) -> None:
    put(index, "a.md", "before")
    with pytest.raises(WorkError):
        index.put(entry("a.md"), [Passage(None, (), 0)])  # type: ignore[arg-type]
    assert len(index.by_words("before", 9)) == 1


def test_threads_write_at_once(index: DocumentIndex) -> None:
    def write(number: int) -> None:
        for each in range(5):
            put(index, f"{number}-{each}.md", f"word{number}x{each}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(index.documents()) == 20
    assert all(len(index.by_words(f"word{n}x{e}", 9)) == 1 for n in range(4) for e in range(5))


def test_a_read_only_file_is_searched(index: DocumentIndex) -> None:
    put(index, "a.md", "wolves")
    index.path.chmod(0o444)
    index.path.parent.chmod(0o555)
    try:
        assert len(DocumentIndex(index.path).by_words("wolves", 9)) == 1
    finally:
        index.path.parent.chmod(0o755)


def test_other_files_are_refused(tmp_path: Path) -> None:
    other, text = tmp_path / "other.db", tmp_path / "text.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (a)")
    text.write_text("hello " * 100)
    (tmp_path / "empty.db").touch()
    for path, create in ((other, True), (other, False), (text, True), (tmp_path / "empty.db", False)):
        before = path.read_bytes()
        with pytest.raises(InputError, match="no index of documents"):
            DocumentIndex(path, create=create)
        assert path.read_bytes() == before
    with pytest.raises(InputError, match="no such index"):
        DocumentIndex(tmp_path / "none.db")
    with pytest.raises(InputError, match="no such folder"):
        DocumentIndex(tmp_path / "none" / "docs.db", create=True)


def test_an_earlier_version_is_refused(index: DocumentIndex) -> None:
    with sqlite3.connect(index.path) as connection:
        connection.execute("PRAGMA user_version=1")
    with pytest.raises(InputError, match="version 1") as caught:
        DocumentIndex(index.path)
    assert caught.value.hint == "delete it, and index the documents again"


def test_a_later_version_is_refused(index: DocumentIndex) -> None:
    with sqlite3.connect(index.path) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(InputError, match="version 99"):
        DocumentIndex(index.path)

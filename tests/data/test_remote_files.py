"""Texts by URL: what is read, where it goes on, and what is refused; on file systems in memory and of files."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from synthe_core.data import remote_files
from synthe_core.data.corpora import open_source
from synthe_core.data.documents import Piece
from synthe_core.data.remote_files import RemoteFiles
from synthe_core.data.spec import DataSpec
from synthe_core.data.streaming.streamed_data import Streamed, open_stream
from synthe_core.errors import InputError


@pytest.fixture
def store() -> Iterator[Any]:
    """A store in memory, empty before and after."""
    system = fsspec.filesystem("memory")
    for path in system.find("/"):
        system.rm(path)
    yield system
    for path in system.find("/"):
        system.rm(path)


def fill(store: Any) -> None:
    store.pipe("/bucket/texts/b.jsonl", b'{"text": "two"}\n{"text": ""}\n{"text": "three"}\n')
    store.pipe("/bucket/texts/a.txt", b"one")
    store.pipe("/bucket/texts/deep/c.jsonl.gz", gzip.compress(b'{"text": "four"}\n'))
    store.pipe("/bucket/texts/.hidden/d.txt", b"hidden")
    store.pipe("/bucket/texts/image.png", b"\x89PNG")


def texts(pieces: Iterator[Piece]) -> list[str]:
    return [piece.text.decode() for piece in pieces]


def test_a_folder_is_read_in_the_order_of_names(store: Any) -> None:
    fill(store)
    source = open_source("memory://bucket/texts", "text")
    assert isinstance(source, RemoteFiles)
    pieces = list(source.pieces())
    assert texts(iter(pieces)) == ["one", "two", "three", "four"]
    assert [piece.document for piece in pieces] == [0, 1, 2, 3]
    assert pieces[1].name == "memory:///bucket/texts/b.jsonl, line 1"
    assert source.size() is None
    assert open_source("memory://bucket/texts/a.txt", "text").size() == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("memory://bucket/texts/a.txt", ["one"]),
        ("memory://bucket/texts/*.jsonl", ["two", "three"]),
        ("memory://bucket/**/*.jsonl*", ["two", "three", "four"]),
    ],
)
def test_files_and_patterns(store: Any, name: str, expected: list[str]) -> None:
    fill(store)
    assert texts(open_source(name, "text").pieces()) == expected


def test_a_reader_goes_on_where_another_stopped(store: Any) -> None:
    fill(store)
    source = open_source("memory://bucket/texts", "text")
    for taken in range(5):
        reader = source.reader()
        head = [next(reader) for _ in range(min(taken, 4))]
        rest = list(source.reader(reader.place))
        assert texts(iter([*head, *rest])) == ["one", "two", "three", "four"]
    assert texts(source.pieces(2)) == ["three", "four"]


def test_files_urls_are_those_of_local_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
    assert texts(open_source(f"file://{tmp_path}", "text").pieces()) == ["one", "two"]


def test_another_text_is_another_source(store: Any) -> None:
    fill(store)
    before = open_source("memory://bucket/texts", "text").identity()
    assert open_source("memory://bucket/texts", "text").identity() == before
    store.pipe("/bucket/texts/a.txt", b"changed")
    assert open_source("memory://bucket/texts", "text").identity() != before


def test_an_error_names_the_url_of_the_file(store: Any) -> None:
    store.pipe("/bucket/x.jsonl", b'{"txt": "two"}\n')
    with pytest.raises(InputError) as caught:
        list(open_source("memory://bucket/x.jsonl", "text").pieces())
    assert caught.value.message == "memory:///bucket/x.jsonl, line 1: unknown field 'text'"
    assert "did you mean 'txt'?" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("memory://bucket/none.txt", "no text at memory://bucket/none.txt", "a file, a folder or a pattern"),
        ("memory://bucket/*.csv", "no text at memory://bucket/*.csv", "a file, a folder or a pattern"),
        ("s4://bucket/x", "unknown scheme 's4://'", "did you mean 's3://'?"),
    ],
)
def test_what_is_not_there(store: Any, name: str, message: str, hint: str) -> None:
    fill(store)
    with pytest.raises(InputError) as caught:
        open_source(name, "text")
    assert caught.value.message == message
    assert hint in (caught.value.hint or "")


def test_labels_by_path_are_refused(store: Any) -> None:
    fill(store)
    with pytest.raises(InputError, match="labels by path are read of local folders only"):
        open_source("memory://bucket/texts", "text", "path")


@pytest.mark.parametrize(("scheme", "driver"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_driver_that_is_not_installed(scheme: str, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(InputError) as caught:
        open_source(f"{scheme}://bucket/texts", "text")
    assert caught.value.message == f"{scheme}:// needs {driver}, which is not installed"
    assert caught.value.hint == f"pip install {driver}, or 'synthe[stream]'"


def test_whatever_a_driver_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def info(self, path: str) -> dict[str, str]:
            raise RuntimeError("AccessDenied\n  no such key")

    monkeypatch.setattr(remote_files, "_connect", lambda name: (Refusing(), "bucket/x"))
    with pytest.raises(InputError) as caught:
        open_source("s3://bucket/x", "text")
    assert caught.value.message == "cannot read s3://bucket/x: RuntimeError: AccessDenied"
    assert caught.value.hint == remote_files.ACCESS


def test_a_stream_of_it_gives_the_tokens_of_a_local_one(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    for i in range(40):
        text = f"{i} times {i} is {i * i}\n".encode() * 20
        (tmp_path / "local" / f"{i:02}.txt").write_bytes(text)
        store.pipe(f"/bucket/local/{i:02}.txt", text)
    remote, local = first_tokens("memory://bucket/local"), first_tokens("local")
    assert len(remote) > 300
    assert remote == local


def first_tokens(source: str) -> list[int]:
    """The tokens of eight sequences of a stream."""
    work = open_stream(DataSpec.model_validate({"sources": source, "stream": True, "sequence": 64, "validation": 0.2}))
    while True:
        try:
            next(work)
        except StopIteration as end:
            streamed: Streamed = end.value
            break
    batches = streamed.batches(seed=0)
    try:
        return [int(token) for token in batches.next(8).inputs.flatten()]
    finally:
        batches.close()

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from synthe_core.data.corpora import open_source
from synthe_core.data.documents import PIECE, limited
from synthe_core.data.stdlib import StandardLibrary
from synthe_core.errors import InputError
from tests.data.conftest import packed, prose, write_rows


def documents(name: str, field: str = "text") -> list[bytes]:
    documents: list[bytes] = []
    for piece in open_source(name, field).pieces():
        assert piece.document == len(documents) or (piece.offset > 0 and piece.document == len(documents) - 1)
        if piece.document == len(documents):
            documents.append(b"")
        documents[-1] += piece.text
    return documents


def test_the_standard_library_is_prose_and_sources_without_tests() -> None:
    source = StandardLibrary()
    pieces = list(source.pieces())
    names = [piece.name for piece in pieces]
    assert names == [piece.name for piece in StandardLibrary().pieces()]
    assert sum(name.startswith("topic ") for name in names) > 50
    assert any(name.endswith("argparse.py") for name in names)
    assert not any("/test/" in n or "/tests/" in n or "idle_test" in n or "site-packages" in n for n in names)
    size = sum(len(piece.text) for piece in pieces)
    assert size > 5_000_000
    assert abs(size - source.size()) < 0.01 * size
    for piece in pieces:
        piece.text.decode("utf-8")
    assert [piece.name for piece in source.pieces(skip=7)] == names[7:]


def test_every_kind_of_file_reads_alike(tmp_path: Path) -> None:
    texts = [prose(i) for i in range(5)]
    rows = write_rows(tmp_path / "a.jsonl", texts)
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(rows.read_bytes())
    frames = [zstandard.compress(part) for part in (rows.read_bytes()[:777], rows.read_bytes()[777:])]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    parquet.write_table(pyarrow.table({"id": range(5), "text": texts}), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        assert documents(str(tmp_path / name)) == [text.encode() for text in texts], name
    (tmp_path / "e.txt").write_text(texts[0])
    with gzip.open(tmp_path / "f.txt.gz", "wb") as file:
        file.write(texts[0].encode())
    (tmp_path / "g.md.zst").write_bytes(zstandard.compress(texts[0].encode()))
    (tmp_path / "h.odd").write_text(texts[0])
    for name in ("e.txt", "f.txt.gz", "g.md.zst", "h.odd"):
        assert documents(str(tmp_path / name)) == [texts[0].encode()], name


def test_folders_and_globs_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.txt", "a.md", "sub/c.py", "picture.png", ".hidden/d.txt", "empty.txt"):
        (tmp_path / name).write_text("" if name == "empty.txt" else name)
    assert documents(str(tmp_path)) == [b"a.md", b"b.txt", b"sub/c.py"]
    assert documents(str(tmp_path / "*.txt")) == [b"b.txt"]
    assert documents(str(tmp_path / "**" / "*.py")) == [b"sub/c.py"]


@pytest.mark.parametrize("text", ["é" * PIECE, "word " * (PIECE // 2), "line 雨\n" * (PIECE // 3)])
def test_a_long_text_is_read_in_pieces_that_split_no_character(tmp_path: Path, text: str) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    pieces = list(open_source(str(path), "text").pieces())
    assert len(pieces) > 1
    assert "".join(piece.text.decode("utf-8") for piece in pieces) == text
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len({piece.key for piece in pieces}) == 1
    offset = 3
    for piece in pieces:
        assert piece.offset == offset
        offset += len(piece.text)


def test_a_limit_cuts_between_characters(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ["aé", "雨雨", "more"])
    source = open_source(str(rows), "text")
    read = [b"".join(piece.text for piece in limited(source.pieces(), n)) for n in range(15)]
    whole = "aé雨雨more".encode()
    assert all(whole.startswith(text) and len(text) <= n for n, text in enumerate(read))
    assert [len(text) for text in read] == [0, 1, 1, 3, 3, 3, 6, 6, 6, 9, 10, 11, 12, 13, 13]
    for n in range(1, 10):
        assert [piece.last for piece in limited(source.pieces(), n)][-1]


def fails(name: object, message: str, hint: str = "", **keys: object) -> None:
    with pytest.raises(InputError, match=message) as raised:
        packed(str(name), **{"sequence": 4, **keys})
    assert hint in (raised.value.hint or "")
    assert "\n" not in raised.value.message


def test_missing_sources(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text " * 50)
    fails("stdlb", "no such file or source: 'stdlb'", "did you mean 'stdlib'?")
    fails(tmp_path / "corpsu.txt", "no such file or source", "corpus.txt'?")
    fails(tmp_path / "*.json", "no file matches", "a source is")
    fails("/nowhere/at/all.txt", "no such file or source", "a source is 'stdlib', 'listops', a file")


def test_empty_sources(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "empty.txt").touch()
    fails(tmp_path / "void" / "empty.txt", r"empty\.txt is empty")
    fails(tmp_path / "void", "holds no text", ".jsonl")
    fails(tmp_path / "void" / "*.txt", "every file that matches")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf")
    fails(tmp_path / "bom.txt", r"bom\.txt' holds no text")
    fails(write_rows(tmp_path / "rows.jsonl", ["", ""]), "holds no text")


def test_a_corpus_shorter_than_a_sequence_names_both_lengths(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("0123456789")
    fails(tmp_path / "short.txt", "it has 11 training tokens, and a sequence of 64 takes 65", sequence=64, validation=0)


def test_rows_that_are_wrong(tmp_path: Path) -> None:
    good = json.dumps({"text": "fine"}).encode() + b"\n"
    path = tmp_path / "rows.jsonl"
    for bad, message, hint in [
        (b"{broken\n", r"rows\.jsonl, line 2: not JSON: .* \(column 2\)", ""),
        (b"[1]\n", "line 2: a row is an object .* not a list", ""),
        (b'{"txet": "a"}\n', "line 2: unknown field 'text'", "did you mean 'txet'?"),
        (b'{"text": 7}\n', "line 2: field 'text' holds a int, not text", "data.field"),
        (b'{"text": "\xff"}\n', "line 2: invalid UTF-8 at byte 10 of the line", ""),
    ]:
        path.write_bytes(good + bad)
        fails(path, message, hint)
    table = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"content": ["a"]}), table)
    fails(table, r"t\.parquet: unknown field 'text'", "content")
    assert documents(str(table), "content") == [b"a"]


def test_damaged_files(tmp_path: Path) -> None:
    whole = gzip.compress(prose(1, 5000).encode())
    for name, content in {
        "half.txt.gz": whole[: len(whole) // 2],
        "not.txt.gz": b"plain text",
        "half.txt.zst": zstandard.compress(prose(1, 5000).encode())[:-9],
        "not.txt.zst": b"plain text",
        "not.parquet": b"plain text",
    }.items():
        (tmp_path / name).write_bytes(content)
        fails(tmp_path / name, f"{name} is damaged")


def test_only_the_byte_tokenizer_takes_invalid_utf8(tmp_path: Path) -> None:
    text = (b"good \xc3\xa9 line\n" * 40000) + b"bad \xff line\n" + b"more text\n" * 50
    path = tmp_path / "mixed.txt"
    path.write_bytes(text)
    place = text.index(b"\xff")
    assert place > PIECE
    fails(path, rf"mixed\.txt: invalid UTF-8 at byte {place}$", "'bytes'", tokenizer={"type": "bpe", "vocab": 300})
    both = packed(str(path), sequence=4, validation=0)
    tokens = both.sources[0].train.read(0, len(text) + 1)
    assert bytes(tokens[:-1].tolist()) == text
    assert tokens[-1] == 256


def test_only_regular_files_are_sources() -> None:
    with pytest.raises(InputError, match="'/dev/null' is no regular file"):
        open_source("/dev/null", "text")

"""Files as people have them: what is read, what is refused, and with which words."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
from pathlib import Path

import pytest
import zstandard

from synthe_core.data import content, json_stream
from synthe_core.data.corpora import open_source
from synthe_core.errors import InputError
from tests.data.conftest import packed, prose
from tests.paths import SHARED

TEXTS = [f'row {i} 雨 \U0001f600 é\nof the sea, “it” said: "so"\n' for i in range(30)]
ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
BOM = codecs.BOM_UTF8


def documents(path: Path | str, field: str = "text") -> list[str]:
    documents: list[bytes] = []
    for piece in open_source(str(path), field).pieces():
        if piece.document == len(documents):
            documents.append(b"")
        documents[piece.document] += piece.text
    return [document.decode() for document in documents]


def written(path: Path, text: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(separator: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(["id", "text"])
    writer.writerows([row["id"], row["text"]] for row in ROWS)
    return text.getvalue()


def long_window(text: bytes) -> bytes:
    """As `zstd --long=30` writes it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=30, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(text) + stream.flush()


FORMS = {
    "bom.jsonl": BOM + LINES.encode(),
    "bom.jsonl.gz": gzip.compress(BOM + LINES.encode()),
    "lines.ndjson": LINES,
    "lines.json": LINES,
    "c4.json.gz": gzip.compress(LINES.encode()),
    "array.json": json.dumps(ROWS),
    "array.jsonl": " " + json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "objects.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "bom.json": BOM + json.dumps(ROWS).encode(),
    "wide.json": json.dumps(ROWS, ensure_ascii=False).encode("utf-16"),
    "wide.jsonl": LINES.encode("utf-16"),
    "t.csv": table(","),
    "semicolons.csv": table(";"),
    "t.tsv": table("\t"),
    "tabs.csv": table("\t").encode("utf-16"),
    "bom.csv.gz": gzip.compress(BOM + table(",").encode()),
    "lines.json.bz2": bz2.compress(LINES.encode()),
    "lines.jsonl.xz": lzma.compress(LINES.encode()),
    "long.jsonl.zst": long_window(LINES.encode()),
    "skippable.jsonl.zst": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstandard.compress(LINES.encode()),
}


@pytest.mark.parametrize("name", FORMS)
def test_tables_in_every_form(tmp_path: Path, name: str) -> None:
    assert documents(written(tmp_path / name, FORMS[name])) == TEXTS


def test_joined_files_have_marks_inside(tmp_path: Path) -> None:
    half = [json.dumps(row) + "\n" for row in ROWS[:2]]
    path = written(tmp_path / "a.jsonl", BOM + half[0].encode() + BOM + half[1].encode())
    assert documents(path) == TEXTS[:2]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_wide_text(tmp_path: Path, encoding: str) -> None:
    text = prose(3, 5000)
    assert documents(written(tmp_path / "a.txt", text.encode(encoding))) == [text]
    big = codecs.BOM_UTF16_BE + text.encode("utf-16-be")
    assert documents(written(tmp_path / "b.txt.gz", gzip.compress(big))) == [text]


def test_an_array_of_any_size_is_read_a_row_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the place where a chunk ends: within a string, an escape, a literal, between rows."""
    rows = [{"n": -1.5e3, "b": [True, None, "\\"], "text": text, "z": "\U0001f600"} for text in TEXTS[:6]]
    for size in range(1, 40):
        monkeypatch.setattr(content, "PIECE", size)
        for name, text in (("a.json", json.dumps(rows, indent=1)), ("b.json", "\n".join(map(json.dumps, rows)))):
            assert documents(written(tmp_path / name, text)) == TEXTS[:6]


def test_what_is_held_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "PIECE", 50)
    monkeypatch.setattr(content, "LONGEST", 2000)
    monkeypatch.setattr(json_stream, "LONGEST", 2000)
    good = [{"text": "short"}] * 300
    assert len(documents(written(tmp_path / "a.json", json.dumps(good)))) == 300
    assert len(documents(written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, good))))) == 300
    bad = [*good, {"text": "x" * 9000}]
    for name, text in (("b.json", json.dumps(bad)), ("b.jsonl", "\n".join(map(json.dumps, bad)))):
        with pytest.raises(InputError, match=r"longer than \d+ MiB"):
            documents(written(tmp_path / name, text))


REFUSED = [
    ("deep.jsonl", '{"text": "a"}\n{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2: nested too deep", "row"),
    ("deep.json", '[{"x": ' + "[" * 100_000 + "]" * 100_000 + "}]", "line 1: nested too deep", "row"),
    ("cut.json", json.dumps(ROWS)[:-20], "line 1: not JSON: ", "cut short"),
    ("end.json", json.dumps(ROWS)[:-1], "ends inside its array", "again"),
    ("more.json", json.dumps(ROWS) + "\nx", "line 2: there is more after the end", ""),
    ("comma.json", '[{"text": "a"}\n{"text": "b"}]', "line 2: not JSON: a comma is missing", ""),
    ("broken.json", '[{"text": "a"},\n{broken}' + " " * 300 + "]", "line 2: not JSON: Expecting property", ""),
    ("strings.json", '["a", "b"]', "line 1: a row is an object .*, not a str", ""),
    ("one.json", '{"data": [{"text": "a"}]}', "unknown field 'text'", "known: data"),
    ("latin.json", b'[{"text": "\xe9"}]', "invalid UTF-8", "UTF-8"),
    ("ragged.csv", "id,text\n1,hello, there\n", "line 2: the row has 3 columns, and the header has 2", "quotes"),
    ("open.csv", 'id,text\n1,"hello\n2,b\n', "line 3: malformed: unexpected end of data", "quotes"),
    ("fields.csv", "id,txet\n1,b\n", "line 2: unknown field 'text'", "did you mean 'txet'?"),
    ("latin.csv", b"id,text\n1,\xe9\n", "line 2: invalid UTF-8", "UTF-8"),
    ("head.csv", "id,text\n", "holds no text", ""),
    ("bad.txt", codecs.BOM_UTF16_LE + b"a\x00b", "begins as UTF-16 and is not", "UTF-8"),
    ("a.pdf", b"%PDF-1.4", "is a PDF, not text", "extract"),
    ("a.docx", b"PK\x03\x04", "is a zip archive", "unpack"),
    ("gzipped.txt", gzip.compress(b"hello"), "is compressed with gzip", ".gz"),
    ("a.tar.gz", gzip.compress(b"a" * 257 + b"ustar\x0000"), "is a tar archive", "unpack"),
]


@pytest.mark.parametrize(("name", "text", "message", "hint"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, text: bytes | str, message: str, hint: str) -> None:
    path = written(tmp_path / name, text)
    with pytest.raises(InputError, match=message) as raised:
        packed(str(path), sequence=4)
    assert str(path) in raised.value.message and "\n" not in raised.value.message
    assert hint in (raised.value.hint or "")


def test_long_numbers_beside_the_text(tmp_path: Path) -> None:
    lines = f'{{"text": "one"}}\n{{"n": {"7" * 5000}, "text": "two"}}\n'
    assert documents(written(tmp_path / "a.jsonl", lines)) == ["one", "two"]
    assert documents(written(tmp_path / "a.json", lines)) == ["one", "two"]
    alone = written(tmp_path / "b.jsonl", lines.splitlines()[1])
    with pytest.raises(InputError, match="field 'n' holds a float, not text"):
        documents(alone, "n")


EMPTY = {
    "mark": BOM,
    "nothing": b"",
    "gzip": gzip.compress(b""),
    "gzip of a mark": gzip.compress(BOM),
    "zstd": zstandard.compress(b""),
}


@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
def test_a_file_without_text_is_no_document(tmp_path: Path, empty: bytes) -> None:
    suffix = {b"\x1f": ".gz", b"\x28": ".zst"}.get(empty[:1], "")
    written(tmp_path / "d" / f"a.txt{suffix}", empty)
    written(tmp_path / "d" / "b.txt", prose(1, 4000))
    data = packed(str(tmp_path / "d"), sequence=16, validation=0.1)
    assert data.sources[0].train.bytes + data.validation.bytes == len(prose(1, 4000).encode())
    with pytest.raises(InputError, match=r"no text|is empty"):
        packed(str(tmp_path / "d" / f"a.txt{suffix}"), sequence=16)


def test_tables_of_another_purpose_are_left_out_of_a_folder_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for name, text in {
        "package.json": '{"name": "x"}',
        "figures.csv": "a,b\n1,2\n",
        "broken.json": "{",
        "c4.json.gz": gzip.compress(LINES.encode()),
        "notes.md": "notes",
    }.items():
        written(folder / name, text)
    source = open_source(str(folder), "text")
    assert documents(folder) == [*TEXTS, "notes"]
    assert len(source.notes) == 1 and "broken.json and 2 more" in source.notes[0]
    assert "without the field 'text'" in source.notes[0]
    (folder / "c4.json.gz").unlink()
    (folder / "notes.md").unlink()
    with pytest.raises(InputError, match=r"holds no text: no row of .* has a field 'text'"):
        open_source(str(folder), "text")
    assert documents(folder, "a") == ["1"]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links to a folder outside, to itself and to what is above it."""
    folder = tmp_path / "d"
    written(folder / "a.txt", "a")
    written(folder / "sub" / "b.txt", "b")
    written(tmp_path / "outside" / "c.txt", "c")
    for link, target in {"loop": ".", "sub/up": "..", "sub/again": ".", "out": "../outside", "gone.txt": "x"}.items():
        os.symlink(target, folder / link)
    return folder


def test_linked_folders_are_followed_once(linked: Path) -> None:
    assert documents(linked) == ["a", "c", "b"]
    assert [note for note in open_source(str(linked), "text").notes if "gone.txt is a link" in note]


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("**/*.txt", ["a", "c", "b"]),
        ("**", ["a", "c", "b"]),
        ("**/b.*", ["b"]),
        ("s*/**/*.txt", ["b"]),
        ("*.txt", ["a"]),
        ("**/sub/*.txt", ["b"]),
    ],
)
def test_patterns_through_links_end(linked: Path, pattern: str, texts: list[str]) -> None:
    assert documents(f"{linked}/{pattern}") == texts


@pytest.mark.parametrize(
    "name", ["my [draft]", "a=b", "c+d", "50%", "日本 語", "#x", "a: b", "{x}", "it's", "~x", "&a", "*"]
)
def test_folders_and_files_of_any_name(tmp_path: Path, name: str) -> None:
    written(tmp_path / name / "in" / f"{name}.txt", "text")
    for source in (f"{name}", f"{name}/in/{name}.txt", f"{name}/in/*.txt", f"{name}/**/*.txt", "**/*.txt"):
        path = tmp_path / source
        assert documents(path) == ["text"]
    labels = [piece.label for piece in open_source(str(tmp_path / name), "text").pieces()]
    assert labels == ["in"]


COUNTS = {"01/bom.jsonl": 60, "01/bom2.jsonl.gz": 60, "02/bigint.jsonl": 61, "07/array.json": 60, "07/lines.json": 60}


@pytest.mark.parametrize(("name", "count"), [*COUNTS.items(), ("03/f", 1)])
def test_cases(name: str, count: int) -> None:
    path = SHARED / "cases" / name
    if not path.exists():
        pytest.skip("no shared cases here")
    assert len(documents(path)) == count

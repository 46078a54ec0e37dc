"""Local texts: plain, .jsonl and .parquet files, compressed or not, alone, in folders or by glob."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import zstandard

from synthe_core.data.documents import PIECE, Piece, Source, cut_near, key_of
from synthe_core.errors import InputError, unknown

PLAIN = frozenset(
    f".{suffix}"
    for suffix in (
        *("txt", "text", "md", "markdown", "rst", "tex", "org", "raw", "tokens", "html", "css", "yaml", "yml", "toml"),
        *("py", "pyi", "c", "h", "cc", "cpp", "hpp", "cu", "rs", "go", "js", "ts", "java", "kt", "swift", "rb", "lua"),
        *("sh", "sql"),
    )
)
"""Suffixes read as plain text in a folder; a file that is named outright is read whatever it is called."""
COMPRESSED = {".gz", ".zst"}
BOM = b"\xef\xbb\xbf"


def find(text: str) -> list[Path]:
    """The files that a path, folder or glob stands for, in the order of their names; [] where nothing is there."""
    path = Path(text).expanduser()
    if path.is_file():
        if path.stat().st_size == 0:
            raise InputError(f"{text} is empty", "name a file with text in it")
        return [path]
    if path.is_dir():
        paths = [p for p in path.rglob("*") if _readable(p.relative_to(path)) and p.is_file()]
        if not any(p.stat().st_size for p in paths):
            raise InputError(f"folder {text} holds no text", "read are .jsonl, .parquet, .txt, .md, .py and the like")
    else:
        paths = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
        if paths and not any(p.stat().st_size for p in paths):
            raise InputError(f"every file that matches {text} is empty", "name a file with text in it")
    return sorted((p for p in paths if p.stat().st_size), key=lambda p: p.as_posix())


def _readable(path: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not hidden and (_kind(path) in PLAIN | {".jsonl", ".parquet"})


def _kind(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


class Files(Source):
    """The texts in `paths`: a plain file is one document; every row of a .jsonl or .parquet is one, its `field`.

    A row's label is its `label_field`, a plain file's the first folder on the way to it from the folder that was named.
    """

    def __init__(self, name: str, paths: list[Path], field: str, label_field: str | None = None) -> None:
        self.name = name
        self.paths = paths
        self.field = field
        self.label_field = label_field

    def identity(self) -> Any:
        files = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in self.paths]
        return ["files", self.field, files]

    def size(self) -> int | None:
        if any(_kind(p) in (".jsonl", ".parquet") or p.suffix.lower() in COMPRESSED for p in self.paths):
            return None
        return sum(p.stat().st_size for p in self.paths)

    def pieces(self, skip: int = 0) -> Iterator[Piece]:
        for number, piece in enumerate(self._pieces()):
            if number >= skip:
                yield piece

    def _pieces(self) -> Iterator[Piece]:
        document = 0
        for path in self.paths:
            try:
                if _kind(path) in (".jsonl", ".parquet"):
                    rows = _json_rows if _kind(path) == ".jsonl" else _parquet
                    for place, text, label in rows(path, self.field, self.label_field):
                        if text:
                            yield Piece.whole(text.encode("utf-8", "replace"), place, document, label)
                            document += 1
                else:
                    label = self._folder(path)
                    for piece in _plain(path, document):
                        yield piece._replace(label=label)
                    document += 1
            except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError, EOFError) as error:
                raise InputError(f"{path} is damaged: {error}", "make or download the file again") from error
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror or error}") from error

    def _folder(self, path: Path) -> str:
        """The first folder below what the name says before its first wildcard; "" where there is none."""
        named = takewhile(lambda part: not set(part) & set("*?["), Path(self.name).expanduser().parts)
        between = path.relative_to(Path(*named)).parts[:-1]
        return between[0] if between and self.label_field is None else ""


def _plain(path: Path, document: int) -> Iterator[Piece]:
    """The pieces of a plain text; each is delayed until it is known whether another follows."""
    buffer, offset, key = b"", 0, b""
    for chunk in _chunks(path):
        if offset == 0 and not buffer:
            offset, chunk = (len(BOM), chunk[len(BOM) :]) if chunk.startswith(BOM) else (0, chunk)
        buffer += chunk
        while len(buffer) > PIECE:
            cut = cut_near(buffer, PIECE, reach=PIECE // 2) or PIECE
            key = key or key_of(buffer[:cut])
            yield Piece(buffer[:cut], str(path), document, offset, False, key)
            buffer, offset = buffer[cut:], offset + cut
    if buffer:
        yield Piece(buffer, str(path), document, offset, True, key or key_of(buffer))


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed. A compressed file that stops half-way raises EOFError."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        yield from _zstandard(path)
        return
    with gzip.open(path) if suffix == ".gz" else path.open("rb") as file:
        while chunk := file.read(PIECE):
            yield chunk


def _zstandard(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        frame = zstandard.ZstdDecompressor().decompressobj()
        begun = False
        while chunk := file.read(PIECE):
            while chunk:
                begun = True
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                    begun = False
        if begun:
            raise EOFError("the compressed stream ends too early")


def _lines(path: Path) -> Iterator[bytes]:
    buffer = b""
    for chunk in _chunks(path):
        *whole, buffer = (buffer + chunk).split(b"\n")
        yield from whole
    if buffer:
        yield buffer


def _json_rows(path: Path, field: str, label_field: str | None) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: invalid UTF-8 at byte {error.start} of the line") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: not JSON: {error.msg} (column {error.colno})") from error
        if not isinstance(row, dict):
            raise InputError(f'{place}: a row is an object such as {{"{field}": ...}}, not a {type(row).__name__}')
        yield place, text_of(row, field, place), label_of(row, label_field, place)


def text_of(row: dict[str, Any], field: str, place: str) -> str:
    """The text of a row ("" where it is null); an InputError names the place and the fields that are there."""
    if field not in row:
        error = unknown("field", field, row)
        raise InputError(f"{place}: {error.message}", f"{error.hint} (set data.field)")
    text = row[field]
    if not isinstance(text, str | None):
        raise InputError(f"{place}: field '{field}' holds a {type(text).__name__}, not text", "set data.field")
    return text or ""


def label_of(row: dict[str, Any], field: str | None, place: str) -> str:
    """The label of a row ("" if it is null, or without a field), as text."""
    if field is None:
        return ""
    if field not in row:
        error = unknown("field", field, row)
        raise InputError(f"{place}: {error.message}", f"{error.hint} (set data.labels)")
    label = row[field]
    if not isinstance(label, str | int | None):
        raise InputError(f"{place}: field '{field}' holds a {type(label).__name__}, no label", "set data.labels")
    return "" if label is None else str(label)


def _parquet(path: Path, field: str, label_field: str | None) -> Iterator[tuple[str, str, str]]:
    import pyarrow  # slow to import, and only needed here
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                text_of(dict.fromkeys(names), field, str(path))
            label_of(dict.fromkeys(names), label_field, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[f for f in (field, label_field) if f is not None]):
                for row in batch.to_pylist():
                    number += 1
                    place = f"{path}, row {number}"
                    yield place, text_of(row, field, place), label_of(row, label_field, place)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}", "make or download it again") from error

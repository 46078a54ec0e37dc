"""The content of a file as UTF-8, in pieces: decompressed, and from UTF-16 and UTF-32 where a file begins so."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from synthe_core.data.documents import PIECE
from synthe_core.errors import InputError

COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": None, ".zstd": None}
BOM = codecs.BOM_UTF8
WINDOW = 2**31
"""The largest window that a .zst file may need in memory, `zstd --long=31`."""
LONGEST = 2**28
"""Bytes of the longest row that is read: a row is held in memory."""
_WIDE = [(codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")]
_WIDE += [(codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")]  # after those with the same first bytes
_NO_TEXT = [
    (0, b"%PDF-", "a PDF", "extract its text first"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it and name the folder"),
    (0, b"\x1f\x8b\x08", "compressed with gzip", "give it the suffix .gz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "give it the suffix .zst"),
    (0, b"\xfd7zXZ\x00", "compressed with xz", "give it the suffix .xz"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and name the folder"),
    (0, b"PAR1", "a Parquet table", "give it the suffix .parquet"),
    (0, b"ARROW1", "an Arrow table", "save it as Parquet"),
    (0, b"SQLite format 3\x00", "a database", "save its texts as JSON lines"),
    (257, b"ustar", "a tar archive", "unpack it and name the folder"),
]
_LONGEST_MARK = 262


def kind(path: Path) -> str:
    """The suffix of a file, in lower case, without that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def content(path: Path) -> Iterator[bytes]:
    """The bytes of a text file, as UTF-8. InputError for archives and the like, which are no text."""
    chunks = _decompressed(path)
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) >= _LONGEST_MARK:
            break
    for at, mark, what, hint in _NO_TEXT:
        if first.startswith(mark, at):
            raise InputError(f"{path} is {what}, not text", hint)
    encoding = next((name for mark, name in _WIDE if first.startswith(mark)), None)
    if encoding is None:
        yield first
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        yield decoder.decode(first).encode()
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise InputError(f"{path} begins as {encoding.upper()} and is not: {error}", "save it as UTF-8") from None


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without their ends and without marks of the byte order, which joined files have inside."""
    begun: list[bytes] = []
    size = number = 0
    for chunk in content(path):
        first, *others = chunk.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > LONGEST:
            raise InputError(f"{path}, line {number + 1} is longer than {LONGEST >> 20} MiB", "a line is one document")
        for line in others:
            yield b"".join(begun).removeprefix(BOM)
            begun, size, number = [line], len(line), number + 1
    if last := b"".join(begun).removeprefix(BOM):
        yield last


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Makes the errors of reading a file InputErrors."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise InputError(f"{path} is damaged: {error}", "make or download the file again") from error
    except OSError as error:
        if path.suffix.lower() == ".bz2" and error.errno is None:
            raise InputError(f"{path} is damaged: {error}", "make or download the file again") from error
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _decompressed(path: Path) -> Iterator[bytes]:
    """A compressed file that stops half-way raises EOFError."""
    suffix = path.suffix.lower()
    if suffix in (".zst", ".zstd"):
        yield from _zstandard(path)
        return
    opened = COMPRESSED.get(suffix)
    with path.open("rb") if opened is None else opened(path, "rb") as file:
        while chunk := file.read(PIECE):
            yield chunk


def _zstandard(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        frame = decompressor.decompressobj()
        begun = False
        while chunk := file.read(PIECE):
            while chunk:
                begun = True
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = decompressor.decompressobj()
                    begun = False
        if begun:
            raise EOFError("the compressed stream ends too early")

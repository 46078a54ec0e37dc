"""What a source of text gives: documents, in pieces."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

PIECE = 256 * 1024
"""Bytes after which a plain text is handed on in pieces, so that a file of any size is read in constant memory."""


class Piece(NamedTuple):
    """A run of bytes of one document, cut where no character is split.

    name:     what to call the document in an error.
    document: its number in the source; `offset`: bytes of it before this piece; `last`: whether it ends here.
    key:      hash of the document's first piece, by which it falls to training or validation.
    label:    the document's class, "" where it has none.
    digest:   hash of the whole document, equal for equal documents however they are stored.
    """

    text: bytes
    name: str
    document: int
    offset: int
    last: bool
    key: bytes
    label: str = ""
    digest: bytes = b""

    @classmethod
    def whole(cls, text: bytes, name: str, document: int, label: str = "") -> Piece:
        return cls(text, name, document, 0, True, key_of(text), label, digest_of([text]))


class PieceReader(Iterator[Piece]):
    """The pieces of a source from a place on. Places are JSON; None is the beginning."""

    def __init__(self, source: Source, place: Any = None) -> None:
        self._number = 0 if place is None else int(place["pieces"])
        self._pieces = source.pieces(self._number)

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        self._number += 1
        return piece

    @property
    def place(self) -> Any:
        """Where the next piece is: `Source.reader(place)` begins with it."""
        return {"pieces": self._number}


class Source(ABC):
    """A finite or endless run of documents, always in the same order."""

    name: str
    notes: tuple[str, ...] = ()
    """What a person should know of it, such as files that are left out, each a line."""

    @abstractmethod
    def identity(self) -> Any:
        """A JSON value that changes when the text may have changed, cheap to make."""

    @abstractmethod
    def pieces(self, skip: int = 0) -> Iterator[Piece]:
        """The documents in pieces, without the first `skip` pieces."""

    def reader(self, place: Any = None) -> PieceReader:
        """The pieces from a reader's `place` on; sources that can go there at once do not read what is before it."""
        return PieceReader(self, place)

    def size(self) -> int | None:
        """Bytes of text to come, where that is known without reading them."""
        return None


def key_of(text: bytes) -> bytes:
    """The hash of a document's first bytes; equal documents have equal keys."""
    return hashlib.blake2b(text, digest_size=8).digest()


def digest_of(pieces: Iterable[bytes]) -> bytes:
    """The hash of a document without white space around it; equal however its text is cut into `pieces`."""
    digest = hashlib.blake2b(digest_size=8)
    until_here = digest  # without the white space after the last text
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip()
        text = piece.rstrip()
        if text:
            digest.update(text)
            begun, until_here = True, digest.copy()
        digest.update(memoryview(piece)[len(text) :])
    return until_here.digest()


def boundary(text: bytes, at: int) -> int:
    """The nearest place at or before `at` that splits no UTF-8 character."""
    while 0 < at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def cut_near(text: bytes, at: int, reach: int) -> int:
    """A good place to cut at or before `at`: after a newline within `reach` bytes, else between characters."""
    newline = text.rfind(b"\n", max(0, at - reach), at)
    return newline + 1 if newline >= 0 else boundary(text, at)


def limited(pieces: Iterator[Piece], limit: int | None) -> Iterator[Piece]:
    """`pieces` up to `limit` bytes of text; the last document is cut there."""
    for piece in pieces:
        if limit is None:
            yield piece
            continue
        if len(piece.text) >= limit:
            if limit > 0:
                yield piece._replace(text=piece.text[: boundary(piece.text, limit)], last=True)
            return
        limit -= len(piece.text)
        yield piece

"""Which text is for training and which for validation: no document, nor a copy of it, is ever in both."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from synthe_core.data.documents import Piece, Source, cut_near, limited
from synthe_core.events import Event, Progress

FEW = 20
"""With fewer documents than this, each one's tail is its validation text: a fraction of so few cannot be drawn."""
SOME = 400
"""Up to this many documents exactly `fraction` of them is drawn; with more, each falls by its own hash."""
SURVEY_BYTES = 256 * 2**20
"""Reading ahead stops after this many bytes once there are enough documents to split by hash."""


class Part(NamedTuple):
    """A run of text on one side; `ends` where an end-of-document token follows it."""

    train: bool
    text: bytes
    name: str
    offset: int
    ends: bool
    label: str
    digest: bytes


@dataclass(frozen=True)
class Plan:
    """How a source is split. `cuts`: by position, the byte at which each document's validation text begins.

    `chosen`: the keys of the validation documents. With neither, a document falls by its key against `fraction`.
    """

    fraction: float
    cuts: list[int] | None = None
    chosen: list[str] | None = None
    total: int | None = field(default=None, compare=False)

    def parts(self, piece: Piece) -> Iterator[Part]:
        """The one or two parts of `piece`."""
        of = (piece.label, piece.digest or piece.key)
        if self.cuts is None:
            yield Part(self._in_train(piece.key), piece.text, piece.name, piece.offset, piece.last, *of)
            return
        cut = self.cuts[piece.document] - piece.offset
        if cut > len(piece.text) or (cut == len(piece.text) and piece.last):
            yield Part(True, piece.text, piece.name, piece.offset, piece.last, *of)
        elif cut <= 0:
            yield Part(False, piece.text, piece.name, piece.offset, piece.last, *of)
        else:
            cut = cut_near(piece.text, cut, reach=min(4096, self.cuts[piece.document] // 20))
            yield Part(True, piece.text[:cut], piece.name, piece.offset, True, *of)
            yield Part(False, piece.text[cut:], piece.name, piece.offset + cut, piece.last, *of)

    def _in_train(self, key: bytes) -> bool:
        if self.chosen is not None:
            return key.hex() not in self.chosen
        return in_train(key, self.fraction)

    def to_json(self) -> dict[str, Any]:
        return {"fraction": self.fraction, "cuts": self.cuts, "chosen": self.chosen, "total": self.total}


def in_train(key: bytes, fraction: float) -> bool:
    """Whether a document is training text by its key alone, with the `fraction` of all documents for validation."""
    return int.from_bytes(key, "big") >= fraction * 2**64


def survey(source: Source, fraction: float, limit: int | None) -> Generator[Event, None, Plan]:
    """Reads as far ahead as it takes to know how to split `source`, and returns the plan."""
    if fraction in (0.0, 1.0):
        return Plan(fraction)
    lengths: list[int] = []
    keys: list[str] = []
    enough = max(SOME, FEW / fraction)  # with more, a fair share of them falls to validation by chance alone
    seen, shown = 0, time.monotonic()
    for piece in limited(source.pieces(), limit):
        if piece.document == len(lengths):
            lengths.append(0)
        lengths[-1] = piece.offset + len(piece.text)
        if piece.text:
            keys.append(piece.key.hex())
        seen += len(piece.text)
        if len(lengths) > enough or (len(lengths) > FEW and seen > SURVEY_BYTES):
            return Plan(fraction)
        if time.monotonic() - shown > 0.2:
            shown = time.monotonic()
            yield Progress(f"looking through {source.name}", seen, source.size(), "B")
    if len(lengths) < FEW:
        return Plan(fraction, cuts=[round(length * (1 - fraction)) for length in lengths], total=seen)
    distinct = sorted(set(keys))
    return Plan(fraction, chosen=distinct[: max(1, round(len(distinct) * fraction))], total=seen)

"""The validation text of streamed data: the first documents of it, packed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from synthe_core.data.documents import Piece, Source, limited
from synthe_core.data.packing import Corpus, NoText, pack
from synthe_core.data.shards import Index
from synthe_core.data.splitting import SURVEY_BYTES, in_train
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.events import Event, Notice

HELD_OUT = 8 * 2**20
"""Bytes of validation text that are kept, of all sources together."""


class FirstHeldOut(Source):
    """The first documents of a corpus that are held out of training, up to `size` bytes.

    They are looked for in the first SURVEY_BYTES of the text.
    """

    def __init__(self, corpus: Corpus, size: int) -> None:
        self.name = corpus.source.name
        self._corpus, self._size = corpus, size

    def identity(self) -> Any:
        return ["held out", *self._corpus.identity(), self._size]

    def pieces(self, skip: int = 0) -> Iterator[Piece]:
        for number, piece in enumerate(limited(self._pieces(), self._size)):
            if number >= skip:
                yield piece

    def _pieces(self) -> Iterator[Piece]:
        read = 0
        for piece in limited(self._corpus.source.pieces(), self._corpus.limit):
            if read > SURVEY_BYTES and not piece.offset:
                return
            read += len(piece.text)
            if not in_train(piece.key, self._corpus.fraction):
                yield piece


def pack_held_out(corpora: Sequence[Corpus], tokenizer: Tokenizer) -> Generator[Event, None, list[tuple[Path, Index]]]:
    """The packed validation text of each corpus that has some (see `pack`)."""
    places = []
    chosen = [corpus for corpus in corpora if corpus.fraction > 0]
    for corpus in chosen:
        first = Corpus(FirstHeldOut(corpus, HELD_OUT // len(chosen)), None, 1.0)
        try:
            places.append((yield from pack(first, tokenizer)))
        except NoText:
            yield Notice(
                f"{corpus.source.name}: no document at its beginning is in the validation split; raise data.validation",
                "warning",
            )
    return places

"""The tokens of a streamed source, from any of them on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event as Stop

import numpy as np

from synthe_core.data.documents import Piece, limited
from synthe_core.data.packing import Corpus, encodable
from synthe_core.data.splitting import in_train
from synthe_core.data.streaming.position import Position, damaged_place
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, Interrupted

BATCH = 2**20
"""Bytes of text tokenized at a time."""


def stopped() -> Interrupted:
    """The error of text that is not read because the run ends."""
    return Interrupted("stopped while reading the training text", "the run continues from its newest checkpoint")


@dataclass(frozen=True)
class StreamedText:
    """A source of training text and its tokenizer. held_out: digests of the documents left out."""

    corpus: Corpus
    tokenizer: Tokenizer
    held_out: frozenset[int]

    @property
    def name(self) -> str:
        return self.corpus.source.name

    def is_trained_on(self, piece: Piece) -> bool:
        """Whether a piece is training text: not held out, and no copy of a document that is."""
        if not (piece.text or piece.offset) or not in_train(piece.key, self.corpus.fraction):
            return False
        return int.from_bytes(piece.digest or piece.key, "little") not in self.held_out


@dataclass
class _Run:
    """Tokens of one piece; `position` is that of the first."""

    position: Position
    ids: np.ndarray


class TokenReader:
    """The tokens of the training documents of a source from a position on, each document with the token that ends it.

    At the end of the source `read` gives fewer tokens than are wanted; `begin_again` continues with its first document.
    stop: once set, reading raises Interrupted.
    """

    def __init__(self, text: StreamedText, position: Position, stop: Stop) -> None:
        self._text, self._stop = text, stop
        self._runs: deque[_Run] = deque()
        self._buffered = 0
        self._start = position
        self._open(position)

    @property
    def position(self) -> Position:
        """Of the next token."""
        return self._runs[0].position if self._runs else self._start

    def read(self, count: int) -> np.ndarray:
        """int64 [count]: the next tokens, which stay the next ones; fewer at the end of the source."""
        while self._buffered < count and self._read_pieces():
            pass
        runs = [run.ids for run in self._runs]
        return np.concatenate([np.empty(0, np.int64), *runs])[:count]

    def skip(self, count: int) -> None:
        """Moves on by `count` tokens that were read."""
        self._buffered -= count
        while count:
            run = self._runs[0]
            if len(run.ids) <= count:
                count -= len(run.ids)
                self._runs.popleft()
                continue
            position = run.position._replace(tokens=run.position.tokens + count)
            self._runs[0] = _Run(position, run.ids[count:])
            count = 0

    def begin_again(self, least: int) -> None:
        """Continues with the first document after the last. InputError if all of them have less than `least` tokens."""
        if self._from_beginning and self._tokens < least:
            raise InputError(
                f"'{self._text.name}' is shorter than one sequence: it has {self._tokens} training tokens, and a "
                f"sequence of {least - 1} takes {least}",
                "give more text, or a shorter data.sequence",
            )
        self._open(Position(self._epoch + 1))

    def _open(self, position: Position) -> None:
        corpus = self._text.corpus
        try:
            self._reader = corpus.source.reader(position.place)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged_place() from error
        rest = None if corpus.limit is None else corpus.limit - position.bytes
        self._pieces = self._placed(limited(self._reader, rest), position)
        self._epoch, self._dropped = position.epoch, position.tokens
        self._from_beginning, self._tokens = not position.pieces, 0

    def _placed(self, pieces: Iterator[Piece], position: Position) -> Iterator[tuple[Position, Piece]]:
        """Each piece with the position of its first token."""
        epoch, number, size, _, place = position
        for piece in pieces:
            if self._stop.is_set():
                raise stopped()
            yield Position(epoch, number, size, 0, place), piece
            number, size, place = number + 1, size + len(piece.text), self._reader.place

    def _read_pieces(self) -> bool:
        """Adds the tokens of the next pieces; false at the end of the source."""
        batch, size = [], 0
        while size < BATCH and (each := next(self._pieces, None)) is not None:
            batch.append(each)
            size += len(each[1].text)
        trained = [(position, piece) for position, piece in batch if self._text.is_trained_on(piece)]
        tokenizer = self._text.tokenizer
        encoded = tokenizer.encode_batch(encodable([piece for _, piece in trained], tokenizer))
        for (position, piece), given in zip(trained, encoded, strict=True):
            ids = np.append(given, tokenizer.end) if piece.last else np.asarray(given)
            ids, dropped, self._dropped = ids[self._dropped :], self._dropped, 0
            if len(ids):
                self._runs.append(_Run(position._replace(tokens=dropped), ids.astype(np.int64)))
            self._buffered += len(ids)
            self._tokens += len(ids)
        return bool(batch)

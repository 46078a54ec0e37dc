"""Text of any length, and facts hidden in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import RandomState

from synthe_core.errors import InputError
from synthe_core.tasks.draw import integers
from synthe_core.tasks.prose import PROSE
from synthe_core.tasks.task import Integers

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
SPACES = np.frombuffer(b" \n\r\t", dtype=np.uint8)


def encoded(text: str) -> Bytes:
    return np.frombuffer(text.encode(), dtype=np.uint8)


class Haystack:
    """Where text is cut from: sentences of the package's own prose in random order, or windows of the user's file.

    The prose is short and a model would soon know it by heart in one order. A file shorter than what is cut from it is
    read on from its start. `forbidden` is how a fact begins, which may not stand in the text.
    """

    def __init__(self, path: str | None, forbidden: str) -> None:
        self.sentences = [encoded(s.strip().replace("\n", " ") + ". ") for s in PROSE.split(".") if s.strip()]
        self.file: Bytes | None = None
        if path is not None:
            try:
                self.file = np.frombuffer(Path(path).read_bytes(), dtype=np.uint8)
            except OSError as error:
                raise InputError(f"cannot read '{path}': {error.strerror}", "text names a file of plain text") from None
            if not len(self.file):
                raise InputError(f"'{path}' is empty", "leave text out for the prose of the package")
            around = self.file.tobytes() + self.file[: len(forbidden)].tobytes()
            if forbidden.encode() in around:
                raise InputError(f"'{path}' contains '{forbidden}', as hidden facts begin", "choose another text")

    def cut(self, rng: RandomState, rows: int, size: int) -> Bytes:
        """Text [rows, size], another piece for each row; it begins and ends anywhere."""
        if self.file is not None:
            starts = integers(rng, 0, len(self.file), (rows, 1))
            return self.file[(starts + np.arange(size)) % len(self.file)]
        shortest = min(len(sentence) for sentence in self.sentences)
        chosen = integers(rng, 0, len(self.sentences), (rows * size // shortest + 1,))
        lengths = np.cumsum([len(self.sentences[i]) for i in chosen])
        enough = int(np.searchsorted(lengths, rows * size)) + 1
        return np.concatenate([self.sentences[i] for i in chosen[:enough]])[: rows * size].reshape(rows, size)


def hide(rng: RandomState, text: Bytes, facts: Bytes) -> tuple[Bytes, Integers]:
    """`facts` [N, K, L] at random places of `text` [N, F], each before a word and the first one first.

    Returns the longer text [N, F + K L], and in which tenth (0 to 9) of `text` each fact stands [N, K].
    """
    (rows, size), (_, count, width) = text.shape, facts.shape
    begins = np.ones((rows, size + 1), dtype=bool)
    begins[:, 1:] = np.isin(text, SPACES)
    begin = np.maximum.accumulate(np.where(begins, np.arange(size + 1), 0), axis=1)
    places = np.sort(np.take_along_axis(begin, integers(rng, 0, size + 1, (rows, count)), axis=1), axis=1)
    starts = places + width * np.arange(count)
    covered = np.zeros((rows, size + count * width), dtype=bool)
    np.put_along_axis(covered, (starts[:, :, None] + np.arange(width)).reshape(rows, -1), True, axis=1)
    whole = np.empty(covered.shape, dtype=np.uint8)
    whole[covered], whole[~covered] = facts.ravel(), text.ravel()
    return whole, np.minimum(10 * places // max(size, 1), 9)

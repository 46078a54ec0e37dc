"""Labelled text: passages of documents with the class of each, to train and validate an encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from synthe_core.data.prepare import Packed
from synthe_core.data.shards import Split
from synthe_core.data.stream import ALL_ROWS, Batch, Stream
from synthe_core.errors import InputError
from synthe_core.ops.cross_entropy import IGNORED


class Passages(NamedTuple):
    """Stretches of a split, int64 [N] each: first token, tokens, class, and the number of the document."""

    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class Labelled:
    """The passages of a recipe's data: `train` a source each, `validation` of all sources. `classes` are the names.

    A passage is at most `sequence` tokens of one document. Documents are cut into passages from their beginning; a rest
    of less than half a passage is left out, unless it is all there is of the document.
    """

    classes: tuple[str, ...]
    sequence: int
    train: tuple[Passages, ...]
    validation: Passages
    held_out: Split

    @classmethod
    def of(cls, packed: Packed, count: int) -> Labelled:
        """The passages of the `count` labels that the most training documents have, sorted by name.

        InputError if the text has too few labels.
        """
        documents = [source.train.labels() for source in packed.train]
        seen = Counter(label for source in documents for label, _ in source if label)
        if not seen:
            raise InputError(
                f"data.labels is {packed.spec.labels}, and no document has such a label",
                "`path` is for a folder of folders, `field:NAME` for rows of tables and the hub",
            )
        if len(seen) < count:
            raise InputError(
                f"the training text has {len(seen)} different labels, and model.head.classes is {count}",
                f"set model.head.classes={len(seen)}" if len(seen) > 1 else "one class leaves nothing to decide",
            )
        chosen = sorted(seen, key=lambda label: (-seen[label], label))[:count]
        classes, sequence = tuple(sorted(chosen)), packed.spec.sequence
        return cls(
            classes,
            sequence,
            tuple(passages(source, classes, sequence) for source in documents),
            passages(packed.validation.labels(), classes, sequence),
            packed.validation,
        )

    def windows(self, limit: int, rows: int) -> Iterator[Batch]:
        """`limit` validation passages, `rows` at a time, spread evenly over all of them."""
        count = len(self.validation.starts)
        chosen = np.arange(min(limit, count)) * count // max(1, min(limit, count))
        for first in range(0, len(chosen), rows):
            mine = chosen[first : first + rows]
            yield batch([(self.held_out, self.validation, int(passage)) for passage in mine], self.sequence)


class LabelledStream(Stream):
    """An endless stream of training passages: a `Stream` that draws passages instead of sequences."""

    def __init__(self, packed: Packed, labelled: Labelled, rows: int, seed: int = 0) -> None:
        self._labelled = labelled
        super().__init__(packed, rows, labelled.sequence, seed)

    def next(self, count: int, rows: slice | None = None) -> Batch:
        """The next `count` passages, or only these `rows` of them."""
        drawn = [self._order.draw() for _ in range(count)][rows or ALL_ROWS]
        places = [(self._splits[source], self._labelled.train[source], number) for source, number in drawn]
        return batch(places, self.sequence)

    def _sequences(self, source: int) -> int:
        return len(self._labelled.train[source].starts)


def batch(places: Sequence[tuple[Split, Passages, int]], time: int) -> Batch:
    """Passages as a batch, [N, time]: the class is at each row's last token, and -100 at the others."""
    inputs = torch.zeros(len(places), time, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    lengths = torch.zeros(len(places), dtype=torch.int64)
    for row, (split, passages, number) in enumerate(places):
        length = int(passages.lengths[number])
        inputs[row, :length] = torch.from_numpy(split.read(int(passages.starts[number]), length))
        targets[row, length - 1] = int(passages.labels[number])
        lengths[row] = length
    return Batch(inputs, targets, lengths)


def passages(documents: Sequence[tuple[str, int]], classes: Sequence[str], sequence: int) -> Passages:
    """The passages of the `documents`, (label, tokens) each, whose label is one of the `classes`."""
    number = {label: index for index, label in enumerate(classes)}
    rows: list[tuple[int, int, int, int]] = []
    start = 0
    for document, (label, tokens) in enumerate(documents):
        if label in number and tokens:
            count = max(1, tokens // sequence + (tokens % sequence >= sequence / 2))
            for first in range(0, count * sequence, sequence):
                rows.append((start + first, min(sequence, tokens - first), number[label], document))
        start += tokens
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return Passages(table[:, 0], table[:, 1], table[:, 2], table[:, 3])

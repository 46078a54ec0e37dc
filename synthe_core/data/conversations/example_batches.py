"""Batches of examples: a row a text, each with a state of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synthe_core.data.conversations.examples import Examples
from synthe_core.data.mixture_order import MixtureOrder
from synthe_core.data.stream import ALL_ROWS, Batch
from synthe_core.ops.cross_entropy import IGNORED

GOOD = "good"
"""The name in a batch's `extras` of whether each row is a good answer, bool [B]; of ratings, and otherwise true."""


class Side(NamedTuple):
    """The examples of a source that are for training, or for validation; `chosen` int64 [N], in order."""

    examples: Examples
    chosen: np.ndarray


class ExampleStream:
    """An endless stream of training examples in the order of a `MixtureOrder`. A cursor restores it exactly."""

    def __init__(self, sides: Sequence[Side], weights: Sequence[float], batch: int, seed: int) -> None:
        self.batch = batch
        self._sides = list(sides)
        self._order = MixtureOrder([len(side.chosen) for side in sides], weights, seed)

    def next(self, count: int, rows: slice | None = None) -> Batch:
        """The next `count` examples, or only these `rows` of them."""
        drawn = [self._order.draw() for _ in range(count)][rows or ALL_ROWS]
        return example_batch([(self._sides[source], number) for source, number in drawn])

    def cursor(self) -> dict[str, Any]:
        return self._order.cursor()

    def seek(self, cursor: dict[str, Any]) -> None:
        self._order.seek(cursor)


def example_batches(sides: Sequence[Side], limit: int, rows: int) -> Iterator[Batch]:
    """`limit` examples, `rows` at a time, spread evenly over all of `sides`."""
    places = [(side, number) for side in sides for number in range(len(side.chosen))]
    limit = min(limit, len(places))
    chosen = [places[number * len(places) // limit] for number in range(limit)]
    for first in range(0, limit, rows):
        yield example_batch(chosen[first : first + rows])


def example_batch(places: Sequence[tuple[Side, int]]) -> Batch:
    """Examples as a batch, a row for each text: every token but the last is an input, every one trained on a target."""
    texts, good = [], []
    for side, number in places:
        example = int(side.chosen[number])
        for text in range(side.examples.texts):
            texts.append(side.examples.text(example, text))
            good.append(bool(side.examples.good[example]))
    lengths = torch.tensor([len(ids) - 1 for ids, _ in texts], dtype=torch.int64)
    inputs = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for row, (ids, trained) in enumerate(texts):
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = torch.where(trained[1:], ids[1:], IGNORED)
    extras: dict[str, Tensor] = {GOOD: torch.tensor(good)}
    return Batch(inputs, targets, lengths, places[0][0].examples.texts, extras)

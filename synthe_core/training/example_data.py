"""The conversations, preferences or ratings that a run trains and validates on."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from synthe_core.data.conversations.example_batches import ExampleStream, Side, example_batches
from synthe_core.data.conversations.examples import Examples
from synthe_core.data.conversations.prepare import open_examples
from synthe_core.data.conversations.sources import RowSource
from synthe_core.data.prepare import open_tokenizer_of
from synthe_core.data.stream import Batch
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice
from synthe_core.recipe.schema import Recipe
from synthe_core.training.data import TrainingData

FEW = 2
"""Rows of which one can be held out and one is left."""


class ExampleData(TrainingData):
    """The stream of examples, and those held out.

    Rows with the same prompt are on the same side. `data.validation` is the fraction of prompts that are held out, or a
    source of its own; then training leaves out the prompts in it.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, train: list[Side], validation: list[Side]) -> None:
        self.sequence, self.tokenizer = recipe.data.sequence, tokenizer
        self.source_names = [source.source for source in recipe.data.sources]
        self._train, self._validation = train, validation
        weights = [source.weight for source in recipe.data.sources]
        self.stream = ExampleStream(train, weights, recipe.train.batch, recipe.seed)

    @property
    def validation_length(self) -> int:
        """Tokens of a held-out example, on average."""
        lengths = [side.examples.lengths()[side.chosen].sum(1) for side in self._validation if len(side.chosen)]
        return max(1, round(float(np.concatenate(lengths).mean()))) if lengths else self.sequence

    @property
    def num_validation_windows(self) -> int:
        return sum(len(side.chosen) for side in self._validation)

    @property
    def epoch(self) -> int:
        return sum(len(side.chosen) for side in self._train)

    def validation_windows(self, limit: int, rows: int) -> Iterator[Batch]:
        return example_batches(self._validation, limit, rows)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer.digest,
            "tokens": [int(side.examples.lengths()[side.chosen].sum()) for side in self._train],
            "digests": [side.examples.digest(side.chosen) for side in self._train],
            "validation": "".join(side.examples.digest(side.chosen) for side in self._validation),
        }


def open_example_data(recipe: Recipe) -> Generator[Event, None, ExampleData]:
    """Reads the rows that are not in the cache yet, and splits them.

    InputError for a source without a usable row, or one that leaves nothing to train on.
    """
    spec, reads = recipe.data, recipe.reads
    assert reads != "text"
    tokenizer = yield from open_tokenizer_of(spec)
    opened: list[Examples] = []
    for each in spec.sources:
        opened.append((yield from open_examples(spec, RowSource.open(each.source), reads, tokenizer)))
    if isinstance(spec.validation, str):
        held_out = yield from open_examples(spec, RowSource.open(spec.validation), reads, tokenizer)
        train = [Side(each, np.flatnonzero(~np.isin(each.keys, held_out.keys))) for each in opened]
        validation = [Side(held_out, np.arange(len(held_out)))]
    else:
        keys = _held_out_keys(np.concatenate([each.keys for each in opened]), float(spec.validation))
        train = [Side(each, np.flatnonzero(~np.isin(each.keys, keys))) for each in opened]
        validation = [Side(each, np.flatnonzero(np.isin(each.keys, keys))) for each in opened]
    for each, side in zip(spec.sources, train, strict=True):
        if not len(side.chosen):
            raise InputError(
                f"every row of {each.source} is validation text", "lower data.validation, or give more rows"
            )
        if isinstance(spec.validation, str) and (lost := len(side.examples) - len(side.chosen)):
            yield Notice(f"{each.source}: {lost:,} rows have a prompt of the validation text, and are left out")
    return ExampleData(recipe, tokenizer, train, validation)


def _held_out_keys(keys: np.ndarray, fraction: float) -> np.ndarray:
    """The prompts that are held out: of all, the `fraction` whose hashes are the smallest; at least one."""
    distinct = np.unique(keys)
    if fraction == 0 or len(distinct) < FEW:
        return np.empty(0, np.int64)
    return distinct[: max(1, round(len(distinct) * fraction))]

"""Multi-query associative recall in which a key and its value stand in one position."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import distinct, marked
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Share, Task


class StackedMQAR(Task):
    """(k1 v1) (k2 v2) ... | k2 k1 ... : recall alone, with nothing to shift from one position to the next.

    In the Zoology repository a position holds the vectors of a key and of a value side by side. With tokens, a pair is
    one token of a joint vocabulary, and what it stands for has to be learned:

        key k  ->  k                value v  ->  keys + v                pair (k, v)  ->  keys + values + k * values + v

    All pairs are shown `passes` times, each pass in another order (Arora et al. 2024, "Just read twice"); then every
    key is queried once, in random order. Keys of a sequence are all different, and so are its values.
    """

    class Config(Spec):
        type: Literal["mqar-stacked"] = "mqar-stacked"
        keys: int = Field(15, ge=1, description="different keys of the vocabulary")
        values: int = Field(15, ge=2, description="different values of the vocabulary")
        pairs: int = Field(4, ge=1)
        passes: int = Field(1, ge=1, description="times that all pairs are shown before the queries")

        @property
        def length(self) -> int:
            return (self.passes + 1) * self.pairs

    axis: ClassVar[str] = "pairs"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for what in ("keys", "values"):
            if getattr(config, what) < config.pairs:
                raise InputError(
                    f"mqar-stacked: {getattr(config, what)} {what} do not make {config.pairs} different pairs",
                    f"the smallest number of {what} that fits is {config.pairs}",
                )

    @property
    def vocab(self) -> int:
        return self.config.keys + self.config.values + self.config.keys * self.config.values

    @property
    def chance(self) -> float:
        return 1 / self.config.values

    def batch(self, count: int, rng: RandomState) -> Examples:
        config, pairs = self.config, self.config.pairs
        keys = distinct(rng, count, 0, config.keys, pairs)
        values = distinct(rng, count, 0, config.values, pairs)
        joint = config.keys + config.values + keys * config.values + values
        orders = [distinct(rng, count, 0, pairs, pairs) for _ in range(config.passes + 1)]
        shown = [np.take_along_axis(joint, order, axis=1) for order in orders[:-1]]
        queries, answers = (np.take_along_axis(x, orders[-1], axis=1) for x in (keys, config.keys + values))
        places = np.tile(np.arange(config.passes * pairs, config.length), (count, 1))
        return Examples(np.concatenate([*shown, queries], axis=1), marked(config.length, places, answers))

    def solve(self, inputs: Integers) -> Integers:
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        first = self.config.keys + self.config.values
        for row, tokens in enumerate(inputs.tolist()):
            bound = dict(divmod(token - first, self.config.values) for token in tokens if token >= first)
            for place, token in enumerate(tokens):
                if token < self.config.keys:
                    targets[row, place] = self.config.keys + bound[token]
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(symbols: int, pairs: int, examples: int) -> Share:
            return Share(cls.Config(keys=symbols, values=symbols, pairs=pairs), examples)

        if name == "quick":
            return Preset([share(15, p, 40_000) for p in (4, 8, 12)], [share(15, p, 256) for p in (4, 8, 12)])
        return Preset([share(30, p, 60_000) for p in (4, 8, 16, 28)], [share(30, p, 1_000) for p in (4, 8, 16, 28)])

"""Recall by keys of two tokens, neither of which determines the value alone."""

from __future__ import annotations

from math import isqrt
from typing import Literal

import numpy as np
from numpy.random import RandomState

from synthe_core.errors import InputError
from synthe_core.tasks.draw import distinct
from synthe_core.tasks.recall import Recall, RecallConfig, interleaved
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Share


class Compositional(Recall):
    """a x 5 b x 3 a y 7 b y 1 | . b x . . a y : answers 3 (at x) and 7 (at y).

    The keys of a sequence are a full grid: each of n first tokens with each of n second tokens, n * n = `pairs`, in
    random order; values are all different. First tokens are of [1, vocab/3), second ones of [vocab/3, 2 vocab/3), and
    values of [2 vocab/3, vocab). A question stands 3g behind the bindings, g drawn as in `mqar`. Source: the
    "compositional" task of the Zoology repository.
    """

    class Config(RecallConfig):
        type: Literal["compositional"] = "compositional"

    def check_sizes(self) -> None:
        pairs, grid = self.config.pairs, isqrt(self.config.pairs)
        if grid * grid != pairs:
            raise InputError(
                f"compositional: {pairs} pairs are no square grid", f"the next number that fits is {(grid + 1) ** 2}"
            )
        self.check_length(3 * pairs, 3)
        self.check_vocab(max(3 * grid + 3, 3 * pairs - 2))

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - 2 * (self.vocab // 3))

    def batch(self, count: int, rng: RandomState) -> Examples:
        pairs, grid, third = self.config.pairs, isqrt(self.config.pairs), self.vocab // 3
        cells = distinct(rng, count, 0, pairs, pairs)
        one = np.take_along_axis(distinct(rng, count, 1, third, grid), cells // grid, axis=1)
        two = np.take_along_axis(distinct(rng, count, third, 2 * third, grid), cells % grid, axis=1)
        values = distinct(rng, count, 2 * third, self.vocab, pairs)
        inputs, targets, _ = self.ask(rng, interleaved(one, two, values), np.stack([one, two], axis=2), values)
        return Examples(inputs, targets)

    def solve(self, inputs: Integers) -> Integers:
        """Reads each row with a dictionary of two-token keys; see `Recall.solve` on filler."""
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        context = 3 * self.config.pairs
        for row, tokens in enumerate(inputs.tolist()):
            bound = {(tokens[i], tokens[i + 1]): tokens[i + 2] for i in range(0, context, 3)}
            for place in range(context, len(tokens) - 1):
                targets[row, place + 1] = bound.get((tokens[place], tokens[place + 1]), UNSCORED)
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(vocab: int, length: int, pairs: int, examples: int) -> Share:
            return Share(cls.Config(vocab=vocab, length=length, pairs=pairs), examples)

        if name == "quick":
            return Preset([share(192, 64, p, 16_000) for p in (4, 9)], [share(192, 64, p, 256) for p in (4, 9)])
        train = [share(1536, 192, pairs, 20_000) for pairs in (4, 9, 16, 25)]
        return Preset(train, [share(1536, 192, pairs, 1_000) for pairs in (4, 9, 16, 25)])

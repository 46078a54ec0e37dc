"""Recall after updates: all pairs first, then new values of some of them, then the questions."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.tasks.draw import distinct, integers, marked
from synthe_core.tasks.recall import Recall, RecallConfig, interleaved
from synthe_core.tasks.task import Examples, Preset, PresetName, Share


class Forgetting(Recall):
    """a 5 b 3 c 7 | c 1 a 9 | . b . a . c . : answers 3, 9, 1.

    `updates` different keys, in random order, get another value than they had. Questions come as in `mqar`. Slice:
    `overwritten` (0 or 1). Source: the "forgetting" task of the Zoology repository.
    """

    class Config(RecallConfig):
        type: Literal["forgetting"] = "forgetting"
        updates: int = Field(2, ge=0, description="how many of the pairs get a new value")

    axis = "updates"

    def check_sizes(self) -> None:
        if self.config.updates > self.config.pairs:
            raise InputError(
                f"forgetting: {self.config.updates} updates of {self.config.pairs} pairs, at most one of each",
                f"the smallest number of pairs that fits is {self.config.updates}",
            )
        super().check_sizes()

    @property
    def bindings(self) -> int:
        return self.config.pairs + self.config.updates

    @property
    def values_needed(self) -> int:
        return self.config.pairs

    def batch(self, count: int, rng: RandomState) -> Examples:
        vocab, pairs, updates = self.config.vocab, self.config.pairs, self.config.updates
        first, values = vocab // 2, vocab - vocab // 2
        keys = distinct(rng, count, 1, first, pairs)
        old = distinct(rng, count, first, vocab, pairs)
        which = distinct(rng, count, 0, pairs, updates)
        new = first + (np.take_along_axis(old, which, axis=1) - first + integers(rng, 1, values, which.shape)) % values
        final, overwritten = old.copy(), np.zeros_like(old)
        np.put_along_axis(final, which, new, axis=1)
        np.put_along_axis(overwritten, which, 1, axis=1)
        updated = np.take_along_axis(keys, which, axis=1)
        context = np.concatenate([interleaved(keys, old), interleaved(updated, new)], axis=1)
        inputs, targets, places = self.ask(rng, context, keys[:, :, None], final)
        return Examples(inputs, targets, {"overwritten": marked(self.config.length, places, overwritten)})

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(vocab: int, length: int, pairs: int, updates: int, examples: int) -> Share:
            return Share(cls.Config(vocab=vocab, length=length, pairs=pairs, updates=updates), examples)

        if name == "quick":
            train = [share(256, 64, 8, updates, 12_000) for updates in (2, 4, 8)]
            return Preset(train, [share(256, 64, 8, updates, 256) for updates in (0, 2, 4, 8)])
        train = [share(1024, 128, 16, updates, 30_000) for updates in (4, 8, 16)]
        return Preset(train, [share(1024, 128, 16, updates, 1_000) for updates in (0, 4, 8, 16)])

"""Recall of keys that are bound again and again: the newest value counts."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.tasks.draw import distinct, integers, marked
from synthe_core.tasks.recall import Recall, RecallConfig, interleaved
from synthe_core.tasks.task import Examples, Preset, PresetName, Share


class RecallOverwrite(Recall):
    """a 5 b 3 a 7 c 1 a 2 | . b . a . c . : answers 3, 2, 1.

    Every key is bound once and `overwrites` more bindings go to random keys, all in random order; no value stands twice
    in a sequence. Questions come as in `mqar`. Slices: `overwritten` (0 or 1) and `times` a key was overwritten. A
    memory that only adds returns a mixture of a key's values; the delta rule replaces the old one.
    """

    class Config(RecallConfig):
        type: Literal["recall-overwrite"] = "recall-overwrite"
        overwrites: int = Field(4, ge=0, description="bindings of a key that is bound already")

    axis = "overwrites"

    @property
    def bindings(self) -> int:
        return self.config.pairs + self.config.overwrites

    def batch(self, count: int, rng: RandomState) -> Examples:
        vocab, pairs, bindings = self.config.vocab, self.config.pairs, self.bindings
        keys = distinct(rng, count, 1, vocab // 2, pairs)
        values = distinct(rng, count, vocab // 2, vocab, bindings)
        again = integers(rng, 0, pairs, (count, self.config.overwrites))
        which = np.concatenate([np.tile(np.arange(pairs), (count, 1)), again], axis=1)
        which = np.take_along_axis(which, distinct(rng, count, 0, bindings, bindings), axis=1)
        newest, times, rows = np.zeros_like(keys), np.full_like(keys, -1), np.arange(count)
        for step in range(bindings):
            newest[rows, which[:, step]] = values[:, step]
            times[rows, which[:, step]] += 1
        context = interleaved(np.take_along_axis(keys, which, axis=1), values)
        inputs, targets, places = self.ask(rng, context, keys[:, :, None], newest)
        slices = {"overwritten": (times > 0).astype(np.int64), "times": times}
        return Examples(inputs, targets, {k: marked(self.config.length, places, v) for k, v in slices.items()})

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(vocab: int, length: int, pairs: int, overwrites: int, examples: int) -> Share:
            return Share(cls.Config(vocab=vocab, length=length, pairs=pairs, overwrites=overwrites), examples)

        if name == "quick":
            train = [share(128, 64, 4, 4, 20_000)]  # few first: see mqar
            train += [share(128, 64, 8, 8, 9_000), share(128, 64, 8, 16, 9_000), share(128, 128, 8, 32, 5_000)]
            test = [
                share(128, length, 8, overwrites, 256) for overwrites, length in ((0, 64), (8, 64), (16, 64), (32, 128))
            ]
            return Preset(train, test, lr=1e-2)
        train = [share(1024, 128, 16, overwrites, 30_000) for overwrites in (8, 16, 32)]
        return Preset(train, [share(1024, 128, 16, overwrites, 1_000) for overwrites in (0, 8, 16, 32)])

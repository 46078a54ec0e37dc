"""Induction heads: after a special token, the token that followed it earlier."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import integers, marked, octave
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Share, Task


class Induction(Task):
    """b c a ! d a b ... c ! : the target at the last token is d.

    The special token (!) is vocab - 1; it stands once at a random place and once more at the end; all others are random
    tokens below it. Slice: `distance` between the two, as the power of two at or below it. Source: Olsson et al. 2022;
    Gu & Dao 2023, "Mamba" (trained at length 256 with a vocabulary of 16).
    """

    class Config(Spec):
        type: Literal["induction"] = "induction"
        vocab: int = Field(16, ge=3)
        length: int = Field(64, ge=3, description="tokens of a sequence, the special ones included")

    @property
    def vocab(self) -> int:
        return self.config.vocab

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - 1)

    def batch(self, count: int, rng: RandomState) -> Examples:
        length, special = self.config.length, self.vocab - 1
        inputs = integers(rng, 0, special, (count, length))
        places = integers(rng, 0, length - 2, (count, 1))
        np.put_along_axis(inputs, places, special, axis=1)
        inputs[:, -1] = special
        last = np.full((count, 1), length - 1)
        answers = np.take_along_axis(inputs, places + 1, axis=1)
        distance = marked(length, last, octave(last - places))
        return Examples(inputs, marked(length, last, answers), {"distance": distance})

    def solve(self, inputs: Integers) -> Integers:
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        for row, tokens in enumerate(inputs.tolist()):
            targets[row, -1] = tokens[tokens.index(self.vocab - 1) + 1]
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(length: int, examples: int) -> Share:
            return Share(cls.Config(length=length), examples)

        if name == "quick":  # short, as one token of a sequence is scored
            return Preset([share(32, 90_000)], [share(n, 1_000) for n in (32, 64, 128, 256)])
        if name == "standard":
            return Preset([share(128, 200_000)], [share(n, 1_000) for n in (128, 256, 512, 1024)])
        # the paper's 200,000 steps of 8 sequences
        return Preset([share(256, 1_600_000)], [share(n, 1_000) for n in (256, 512, 1024, 2048)])

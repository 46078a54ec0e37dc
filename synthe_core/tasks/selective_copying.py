"""Selective copying: a few tokens among noise, to be repeated in order."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import distinct, integers, marked
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Share, Task

NOISE = 0


class SelectiveCopying(Task):
    """. . b . . a . c . . # # # : at the blanks (#) the answers are b, a, c.

    0 is noise, vocab - 1 the blank, and what is between is data. `data` tokens stand at random places of the first
    length - data tokens; as many blanks follow. Answers are targets, but not in the text. Source: Gu & Dao 2023,
    "Mamba" (length 4096, 16 data tokens, vocabulary 16).
    """

    class Config(Spec):
        type: Literal["selective-copying"] = "selective-copying"
        vocab: int = Field(16, ge=4)
        length: int = Field(64, ge=2, description="tokens of a sequence, blanks included")
        data: int = Field(16, ge=1, description="tokens to repeat")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.length < 2 * config.data:
            raise InputError(
                f"selective-copying: {config.data} data tokens and as many blanks do not fit into {config.length}",
                f"the smallest length that fits is {2 * config.data}",
            )

    @property
    def vocab(self) -> int:
        return self.config.vocab

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - 2)

    def batch(self, count: int, rng: RandomState) -> Examples:
        length, data = self.config.length, self.config.data
        tokens = integers(rng, 1, self.vocab - 1, (count, data))
        places = np.sort(distinct(rng, count, 0, length - data, data), axis=1)
        inputs = np.full((count, length), NOISE, dtype=np.int64)
        np.put_along_axis(inputs, places, tokens, axis=1)
        inputs[:, length - data :] = self.vocab - 1
        return Examples(inputs, marked(length, np.tile(np.arange(length - data, length), (count, 1)), tokens))

    def solve(self, inputs: Integers) -> Integers:
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        for row, tokens in enumerate(inputs.tolist()):
            blanks = tokens.index(self.vocab - 1)
            targets[row, blanks:] = [token for token in tokens[:blanks] if token != NOISE]
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(length: int, data: int, examples: int) -> Share:
            return Share(cls.Config(length=length, data=data), examples)

        if name == "quick":
            return Preset([share(64, 8, 48_000)], [share(n, 8, 256) for n in (64, 128, 256, 512)])
        if name == "standard":
            return Preset([share(256, 16, 100_000)], [share(n, 16, 500) for n in (256, 512, 1024, 2048)])
        # the paper's 400,000 steps of 64 sequences
        return Preset([share(4096, 16, 25_600_000)], [share(n, 16, 200) for n in (4096, 8192, 16384, 32768)])

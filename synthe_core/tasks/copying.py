"""Copying: a random string, a separator, and the string once more."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import integers
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Share, Task

SEPARATOR = 0


class Copying(Task):
    """c a b a | c a b : from the separator on, the target is the next token of the copy, which then follows as input.

    The string is length / 2 tokens of [1, vocab), each drawn alone. Source: Jelassi et al. 2024, "Repeat after me".
    """

    class Config(Spec):
        type: Literal["copying"] = "copying"
        vocab: int = Field(64, ge=3, description="the separator is 0")
        length: int = Field(64, ge=2, description="tokens of a sequence, twice those of the string")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.length % 2:
            raise InputError(
                f"copying: length must be even, not {config.length}", f"the next that fits is {config.length + 1}"
            )

    @property
    def vocab(self) -> int:
        return self.config.vocab

    @property
    def chance(self) -> float:
        return 1 / (self.vocab - 1)

    def batch(self, count: int, rng: RandomState) -> Examples:
        string = integers(rng, 1, self.vocab, (count, self.config.length // 2))
        inputs = np.concatenate([string, np.full((count, 1), SEPARATOR), string[:, :-1]], axis=1)
        return Examples(inputs, np.concatenate([np.full_like(string, UNSCORED), string], axis=1))

    def solve(self, inputs: Integers) -> Integers:
        """Finds the separator of each row and goes on with what stood before it."""
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        for row, tokens in enumerate(inputs.tolist()):
            end = tokens.index(SEPARATOR)
            targets[row, end : 2 * end] = tokens[:end]
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(length: int, examples: int) -> Share:
            return Share(cls.Config(vocab=64, length=length), examples)

        if name == "quick":  # strings of several lengths: with one alone, a model learns to count to it
            return Preset([share(n, 24_000) for n in (16, 32, 64)], [share(n, 128) for n in (64, 128, 256, 512)])
        train = [share(n, 40_000) for n in (32, 64, 128, 256)]
        return Preset(train, [share(n, 500) for n in (256, 512, 1024, 2048)])

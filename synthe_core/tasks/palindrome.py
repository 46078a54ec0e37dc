"""Palindromes: a random word, a mark, the word backwards."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import integers, octave
from synthe_core.tasks.lengths import longer
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Task


class Palindrome(Task):
    """a b c | c b a end. `tokens`: from the mark on the target is the next token, c, b, a. `verdict`: the
    target at the end is whether it is a palindrome.

    Words are tokens of [0, symbols), drawn alone; then come the tokens for the mark, end, no and yes. For a verdict one
    half of the sequences, each by the toss of a coin, have one token after the mark changed to another. Deciding takes
    the memory that completing takes, but gives one bit a sequence. Slice of `tokens`: `ago`, how long ago the token was
    read, by powers of two.

    Sources: Chomsky 1956 (the language); Delétang et al. 2023 (`tokens` is their "reverse string", written on).
    """

    class Config(Spec):
        type: Literal["palindrome"] = "palindrome"
        symbols: int = Field(16, ge=2)
        length: int = Field(32, ge=4, description="tokens of a sequence, twice those of the word, and two")
        target: Literal["tokens", "verdict"] = Field("tokens", description="the word backwards, or whether it is one")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.length % 2:
            raise InputError(
                f"palindrome: length must be even, not {config.length}", f"the next that fits is {config.length + 1}"
            )

    @property
    def vocab(self) -> int:
        return self.config.symbols + 4

    @property
    def chance(self) -> float:
        return 1 / self.config.symbols if self.config.target == "tokens" else 1 / 2

    def batch(self, count: int, rng: RandomState) -> Examples:
        symbols, half = self.config.symbols, self.config.length // 2 - 1
        word, mark = integers(rng, 0, symbols, (count, half)), np.full((count, 1), symbols, dtype=np.int64)
        inputs = np.concatenate([word, mark, word[:, ::-1], mark + 1], axis=1)
        targets = np.full_like(inputs, UNSCORED)
        if self.config.target == "tokens":
            targets[:, half:-2] = word[:, ::-1]
            ago = np.full_like(inputs, UNSCORED)
            ago[:, half:-2] = octave(2 * np.arange(half) + 1)
            return Examples(inputs, targets, {"ago": ago})
        rows, broken, places = np.arange(count), integers(rng, 0, 2, (count,)), integers(rng, 0, half, (count,))
        places += half + 1
        inputs[rows, places] = (inputs[rows, places] + broken * integers(rng, 1, symbols, (count,))) % symbols
        targets[:, -1] = symbols + 3 - broken
        return Examples(inputs, targets)

    def solve(self, inputs: Integers) -> Integers:
        """Finds the mark of each row, and takes off a stack what stood before it."""
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        symbols = self.config.symbols
        for row, tokens in enumerate(inputs.tolist()):
            mark = tokens.index(symbols)
            stack, after = tokens[:mark], tokens[mark + 1 : -1]
            if self.config.target == "verdict":
                targets[row, -1] = symbols + 2 + all(stack.pop() == token for token in after)
                continue
            for place in range(mark, mark + len(after)):
                targets[row, place] = stack.pop()
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        if name == "quick":
            return longer(cls.Config, {8: 60_000, 16: 60_000, 32: 50_000}, 128)
        return longer(cls.Config, {16: 100_000, 32: 100_000, 64: 100_000}, 500)

"""Passkey: a number stated once in a long text, and queried at its end."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import digits, digits_chance, marked
from synthe_core.tasks.haystack import Haystack, encoded, hide
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Share, Task

FACT, END, QUESTION = "The pass key is ", ". ", "\nWhat is the pass key? "


class Passkey(Task):
    """... text ... The pass key is 48213. ... text ... What is the pass key? 4821 : the answer is scored.

    Tokens are bytes. The text is that of `Haystack`; the number has no leading zero. Slice: `depth`, the tenth of the
    text (0 to 9) in which the number stands. Source: Mohtashami & Jaggi 2023, "Landmark attention", there with one
    sentence repeated as the text.
    """

    class Config(Spec):
        type: Literal["passkey"] = "passkey"
        length: int = Field(128, ge=1, description="bytes of a sequence, question and answer included")
        digits: int = Field(5, ge=1)
        text: str | None = Field(None, description="a file of text to hide the number in; else the package's own prose")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.frame = len(FACT) + len(END) + len(QUESTION) + 2 * config.digits - 1
        if config.length < self.frame:
            raise InputError(
                f"passkey: a number of {config.digits} digits and its question do not fit into {config.length} bytes",
                f"the smallest length that fits is {self.frame}",
            )
        self.haystack = Haystack(config.text, FACT)

    @property
    def vocab(self) -> int:
        return 256

    @property
    def chance(self) -> float:
        return digits_chance(self.config.digits)

    def batch(self, count: int, rng: RandomState) -> Examples:
        length, size = self.config.length, self.config.digits
        key = ord("0") + digits(rng, (count, 1), size)
        fact, end, question = (np.tile(encoded(words), (count, 1, 1)) for words in (FACT, END, QUESTION))
        facts = np.concatenate([fact, key, end], axis=2).astype(np.uint8)
        text, depth = hide(rng, self.haystack.cut(rng, count, length - self.frame), facts)
        inputs = np.concatenate([text, question[:, 0], key[:, 0, :-1]], axis=1).astype(np.int64)
        places = np.tile(np.arange(length - size, length), (count, 1))
        slices = {"depth": marked(length, places, np.repeat(depth, size, axis=1))}
        return Examples(inputs, marked(length, places, key[:, 0]), slices)

    def solve(self, inputs: Integers) -> Integers:
        """Searches each row for the sentence, and for the question behind whose last byte the answer stands."""
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        for row, text in enumerate(inputs.astype(np.uint8)):
            (number,) = re.findall(rb"The pass key is (\d+)\. ", text.tobytes())
            *_, question = re.finditer(rb"What is the pass key\? ", text.tobytes())
            targets[row, question.end() - 1 : question.end() - 1 + len(number)] = list(number)
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(length: int, examples: int) -> Share:
            return Share(cls.Config(length=length), examples)

        if name == "quick":
            return Preset([share(128, 24_000)], [share(n, 128) for n in (128, 256, 512, 1024)])
        return Preset([share(1024, 50_000)], [share(n, 500) for n in (1024, 2048, 4096, 8192)])

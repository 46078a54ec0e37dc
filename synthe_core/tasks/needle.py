"""Needle: several facts hidden in a long text, one of which is queried at its end."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import distinct, integers, marked
from synthe_core.tasks.haystack import Haystack, encoded, hide
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Share, Task

NOUNS = [
    "basket",
    "bottle",
    "bridge",
    "button",
    "candle",
    "castle",
    "cellar",
    "forest",
    "garden",
    "hammer",
    "harbor",
    "island",
]
NOUNS += ["kettle", "ladder", "magnet", "market"]
"""What has a word: all of six letters, so that every sequence of a length has as much text."""
FACT, MIDDLE, END = "The word of the ", " is ", ". "
QUESTION, ASK = "\nWhat is the word of the ", "? "


class Needle(Task):
    """... The word of the bridge is qzvtk. ... What is the word of the bridge? qzvt : the answer is scored.

    Tokens are bytes. `needles` such facts about different things stand in the text of `Haystack`; words are random
    letters. Slice: `depth`, the tenth of the text (0 to 9) of the queried fact. Source: Kamradt 2023,
    "Needle in a haystack"; with several needles as in Hsieh et al. 2024, "RULER".
    """

    class Config(Spec):
        type: Literal["needle"] = "needle"
        length: int = Field(192, ge=1, description="bytes of a sequence, question and answer included")
        needles: int = Field(2, ge=1, description="facts in the text, one of which is queried")
        letters: int = Field(5, ge=1, description="letters of a word")
        text: str | None = Field(None, description="a file of text to hide the facts in; else the package's own prose")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        noun = len(NOUNS[0])
        fact = len(FACT) + noun + len(MIDDLE) + config.letters + len(END)
        self.frame = config.needles * fact + len(QUESTION) + noun + len(ASK) + config.letters - 1
        if config.needles > len(NOUNS):
            raise InputError(
                f"needle: there are {len(NOUNS)} subjects for facts, not {config.needles}",
                f"the largest number of needles that fits is {len(NOUNS)}",
            )
        if config.length < self.frame:
            raise InputError(
                f"needle: {config.needles} facts and a question do not fit into {config.length} bytes",
                f"the smallest length that fits is {self.frame}",
            )
        self.haystack = Haystack(config.text, FACT)

    @property
    def vocab(self) -> int:
        return 256

    @property
    def chance(self) -> float:
        return 1 / 26

    def batch(self, count: int, rng: RandomState) -> Examples:
        length, needles, size = self.config.length, self.config.needles, self.config.letters
        nouns = np.stack([encoded(noun) for noun in NOUNS])[distinct(rng, count, 0, len(NOUNS), needles)]
        words = ord("a") + integers(rng, 0, 26, (count, needles, size))
        fact, middle, end = (np.tile(encoded(text), (count, needles, 1)) for text in (FACT, MIDDLE, END))
        facts = np.concatenate([fact, nouns, middle, words, end], axis=2).astype(np.uint8)
        text, depth = hide(rng, self.haystack.cut(rng, count, length - self.frame), facts)
        one = (np.arange(count), integers(rng, 0, needles, (count,)))
        question, ask = (np.tile(encoded(words), (count, 1)) for words in (QUESTION, ASK))
        inputs = np.concatenate([text, question, nouns[one], ask, words[one][:, :-1]], axis=1).astype(np.int64)
        places = np.tile(np.arange(length - size, length), (count, 1))
        slices = {"depth": marked(length, places, np.repeat(depth[one][:, None], size, axis=1))}
        return Examples(inputs, marked(length, places, words[one]), slices)

    def solve(self, inputs: Integers) -> Integers:
        """Searches each row for the sentences, and for the question behind whose last byte the answer stands."""
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        for row, text in enumerate(inputs.astype(np.uint8)):
            facts = dict(re.findall(rb"The word of the (\w+) is (\w+)\. ", text.tobytes()))
            *_, question = re.finditer(rb"What is the word of the (\w+)\? ", text.tobytes())
            word = facts[question[1]]
            targets[row, question.end() - 1 : question.end() - 1 + len(word)] = list(word)
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(length: int, needles: int, examples: int) -> Share:
            return Share(cls.Config(length=length, needles=needles), examples)

        if name == "quick":
            # First one fact and little text: with two in 192 bytes alone, learners find the facts late.
            train = [share(96, 1, 10_000), share(128, 2, 8_000), share(192, 2, 6_000)]
            return Preset(train, [share(n, 2, 128) for n in (192, 384, 768, 1536)])
        return Preset([share(1024, 8, 50_000)], [share(n, 8, 500) for n in (1024, 2048, 4096, 8192)])

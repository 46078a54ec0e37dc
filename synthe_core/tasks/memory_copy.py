"""Memory copy: a line of text assigns numbers to variables, and queries some of them."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import digits, digits_chance, distinct, marked
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Share, Task

ALPHABET = "0123456789 ,.=?Wabcdefghijklmnopqrstuvwxyz"  # a token is a character's place in it
NAMES = 26


class MemoryCopy(Task):
    """a=10, b=20. What is a? 10. What is b? 2 : the digits of the answers are scored, one character a token.

    Names are `pairs` different letters, numbers have `digits` digits without a leading zero, and `questions` of the
    names are queried, none twice. Answers are written, except the very last digit.
    """

    class Config(Spec):
        type: Literal["memory-copy"] = "memory-copy"
        pairs: int = Field(4, ge=1, description="variables that get a number")
        digits: int = Field(2, ge=1, description="digits of a number")
        questions: int = Field(2, ge=1, description="variables that are queried")

        @property
        def length(self) -> int:
            return self.pairs * (self.digits + 4) + self.questions * (self.digits + 13) - 3

    axis: ClassVar[str] = "pairs"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.pairs > NAMES:
            raise InputError(
                f"memory-copy: there are {NAMES} names, not {config.pairs}", f"the largest number that fits is {NAMES}"
            )
        if config.questions > config.pairs:
            raise InputError(
                f"memory-copy: {config.questions} questions on {config.pairs} names, of which none is queried twice",
                f"the smallest number of pairs that fits is {config.questions}",
            )

    @property
    def vocab(self) -> int:
        return len(ALPHABET)

    @property
    def chance(self) -> float:
        return digits_chance(self.config.digits)

    def batch(self, count: int, rng: RandomState) -> Examples:
        pairs, size, questions = self.config.pairs, self.config.digits, self.config.questions
        first = ALPHABET.index("a")
        names = distinct(rng, count, first, first + NAMES, pairs)
        numbers = digits(rng, (count, pairs), size)  # the token of a digit is its value
        queried = distinct(rng, count, 0, pairs, questions)

        def words(text: str) -> Integers:
            return np.tile(np.array([ALPHABET.index(character) for character in text]), (count, 1))

        rows, text = np.arange(count), []
        for i in range(pairs):
            text += [names[:, [i]], words("="), numbers[:, i], words(". " if i == pairs - 1 else ", ")]
        for one in queried.T:
            text += [words("What is "), names[rows, one][:, None], words("? "), numbers[rows, one], words(". ")]
        inputs = np.concatenate(text, axis=1)[:, : self.config.length]
        starts = pairs * (size + 4) + np.arange(questions) * (size + 13) + len("What is a?")
        places = np.tile((starts[:, None] + np.arange(size)).ravel(), (count, 1))
        answers = numbers[rows[:, None], queried].reshape(count, -1)
        return Examples(inputs, marked(self.config.length, places, answers))

    def solve(self, inputs: Integers) -> Integers:
        """Reads the line of text with regular expressions."""
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        for row, tokens in enumerate(inputs.tolist()):
            text = "".join(ALPHABET[token] for token in tokens)
            bound = dict(re.findall(r"([a-z])=(\d+)", text))
            for question in re.finditer(r"What is ([a-z])\? ", text):
                answer = [int(digit) for digit in bound[question[1]]]
                targets[row, question.end() - 1 : question.end() - 1 + len(answer)] = answer
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(pairs: int, digits: int, questions: int, examples: int) -> Share:
            return Share(cls.Config(pairs=pairs, digits=digits, questions=questions), examples)

        if name == "quick":
            return Preset([share(p, 2, 2, 16_000) for p in (2, 4, 8)], [share(p, 2, 2, 256) for p in (2, 4, 8, 16)])
        return Preset([share(p, 3, 4, 40_000) for p in (4, 8, 16)], [share(p, 3, 4, 1_000) for p in (4, 8, 16, 26)])

"""The base of the associative recall tasks: keys are bound to values first and queried later, among filler."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import integers, marked, weighted
from synthe_core.tasks.task import UNSCORED, Integers, Task


class RecallConfig(Spec):
    vocab: int = Field(8192, ge=4, description="half of it keys, half of it values")
    length: int = Field(64, ge=4, description="tokens of a sequence; even")
    pairs: int = Field(4, ge=1, description="different keys of a sequence")
    power: float = Field(0.01, gt=0, description="1 spreads the questions evenly; towards 0 most come early")
    random_non_queries: bool = Field(True, description="filler is random tokens rather than zeros")


class Recall(Task):
    """k v k v ... | . k . . k . : keys are tokens of [1, vocab/2), values tokens of [vocab/2, vocab).

    Each key is queried once, at a distance 2g behind the bindings; g is drawn without repetition with probability
    ~ (g + 1)^(power - 1). The answer is a target, but not in the text. The remaining tokens are filler: random tokens
    of the whole vocabulary, or 0. Source: Arora et al. 2023, "Zoology" (whose filler comes from another seed than the
    rest).
    """

    Config = RecallConfig
    axis = "pairs"

    def __init__(self, config: RecallConfig) -> None:
        super().__init__(config)
        self.check_sizes()

    def check_sizes(self) -> None:
        """InputError where keys, values or tokens are too few."""
        self.check_length(2 * self.bindings, 2)
        self.check_vocab(max(2 * self.config.pairs + 2, 2 * self.values_needed - 1))

    def check_length(self, context: int, question: int) -> None:
        """Bindings of `context` tokens and a question of `question` tokens (its gap included) for each key must fit."""
        name, pairs, length = self.config.type, self.config.pairs, self.config.length
        if length < context + question * pairs:
            raise InputError(
                f"{name}: bindings and questions of {pairs} pairs do not fit into {length} tokens",
                f"the smallest length that fits is {context + question * pairs}",
            )
        if length % 2:
            raise InputError(f"{name}: length must be even, not {length}", f"the next that fits is {length + 1}")

    def check_vocab(self, smallest: int) -> None:
        if self.vocab < smallest:
            raise InputError(
                f"{self.config.type}: a vocabulary of {self.vocab} holds too few different keys and values",
                f"the smallest vocabulary that fits is {smallest}",
            )

    @property
    def bindings(self) -> int:
        """The number of key-value pairs before the queries."""
        return self.config.pairs

    @property
    def values_needed(self) -> int:
        """The number of different values that one sequence can need."""
        return self.bindings

    @property
    def vocab(self) -> int:
        return self.config.vocab

    @property
    def chance(self) -> float:
        """The best guess without recall: any one value token, each as likely as the others."""
        return 1 / (self.vocab - self.vocab // 2)

    def ask(
        self, rng: RandomState, context: Integers, questions: Integers, answers: Integers
    ) -> tuple[Integers, Integers, Integers]:
        """Inputs and targets [N, T] of `context` [N, C] and `questions` [N, P, W], at distances (W + 1) g after it; and
        the position of each answer [N, P]."""
        rows, count, width = questions.shape
        length, start, step = self.config.length, context.shape[1], width + 1
        slots = np.arange(1, (length - start) // step + 1, dtype=float)
        places = start + step * weighted(rng, rows, slots ** (self.config.power - 1), count)
        filler = self.config.random_non_queries
        inputs = integers(rng, 0, self.vocab, (rows, length)) if filler else np.zeros((rows, length), dtype=np.int64)
        inputs[:, :start] = context
        for word in range(width):
            np.put_along_axis(inputs, places + word, questions[:, :, word], axis=1)
        places = places + width - 1
        return inputs, marked(length, places, answers), places

    def solve(self, inputs: Integers) -> Integers:
        """Reads each row with a dictionary, in which a later binding replaces an earlier one. Filler may repeat a key,
        at even distances too: it returns a value there as well; compare the scored tokens only."""
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        context = 2 * self.bindings
        for row, tokens in enumerate(inputs.tolist()):
            bound = dict(zip(tokens[0:context:2], tokens[1:context:2], strict=True))
            for place in range(context, len(tokens), 2):
                targets[row, place] = bound.get(tokens[place], UNSCORED)
        return targets


def interleaved(*columns: Integers) -> Integers:
    """a1 b1 a2 b2 ... of [N, P] arrays a, b, ...: [N, P * number of arrays]."""
    return np.stack(columns, axis=2).reshape(len(columns[0]), -1)

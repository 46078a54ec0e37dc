"""ListOps: nested lists of digits, each with an operator; what does the whole come to?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.chance import most_frequent
from synthe_core.tasks.draw import integers
from synthe_core.tasks.lengths import longer
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Task

SHORTEST = 4
MIN, MAX, MED, SM, CLOSE = range(10, 15)  # after the digits
FOLDS: dict[int, Callable[[list[int]], float]] = {MIN: min, MAX: max, MED: median, SM: sum}


class ListOps(Task):
    """[MAX 2 9 [MIN 4 7 ] 0 ]: the target at the last bracket is the value, 9.

    Operators are the least, the greatest, the median (of an even count the mean of the middle two, rounded down) and
    SM, the sum mod 10. A tree grows from one leaf to exactly `length` tokens: a random leaf above the limit of `depth`
    becomes a list of 2 to `arguments` leaves, again and again. The sources grow it from the root and keep what has a
    suitable length (500 to 2,000, depth 10, 10 arguments). Slice: `depth`, how many lists are open where it is deepest.

    Sources: Nangia & Bowman 2018, "ListOps"; Tay et al. 2021, "Long Range Arena".
    """

    class Config(Spec):
        type: Literal["listops"] = "listops"
        length: int = Field(32, ge=SHORTEST, description="tokens of a sequence")
        depth: int = Field(10, ge=1, le=100, description="lists within each other, at most")
        arguments: int = Field(10, ge=4, description="of a list, at most; 2 at least")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # However a tree grows, it can grow on until it is the full binary tree of this depth.
        if config.length > 3 * 2**config.depth - 2:
            smallest = ((config.length + 2 + 2) // 3 - 1).bit_length()
            raise InputError(
                f"listops: lists {config.depth} deep may not fill {config.length} tokens",
                f"the smallest depth that fits is {smallest}",
            )

    @property
    def vocab(self) -> int:
        return CLOSE + 1

    @property
    def chance(self) -> float:
        """Measured: 0 and 9 are likelier than the other digits."""
        return most_frequent(self)

    def batch(self, count: int, rng: RandomState) -> Examples:
        inputs = self._texts(count, rng)
        targets, depth = np.full_like(inputs, UNSCORED), np.full_like(inputs, UNSCORED)
        targets[:, -1] = self._values(inputs)
        opened = np.cumsum((inputs >= MIN).astype(np.int64) - 2 * (inputs == CLOSE), axis=1)
        depth[:, -1] = opened.max(axis=1)
        return Examples(inputs, targets, {"depth": depth})

    def _texts(self, count: int, rng: RandomState) -> Integers:
        """Grows all trees at once, each as a chain of tokens: `after` is the place of the next one.

        A leaf that becomes a list is its operator; its digits and its bracket take the next free places.
        """
        length, most, steps = self.config.length, self.config.arguments, (self.config.length - 1) // 3
        tokens, operators = integers(rng, 0, MIN, (count, length)), integers(rng, MIN, CLOSE, (count, steps))
        coins = rng.random_sample((2, steps, count))
        after = np.tile(np.arange(1, length + 1), (count, 1))
        depth, leaves = np.zeros((2, count, length), dtype=np.int64)  # leaves: the places of those that may grow,
        growing, left = np.ones(count, dtype=np.int64), np.full(count, length - 1)  # how many, and the free places
        for step in range(steps):
            rows = np.flatnonzero(left)
            spot = (coins[0, step, rows] * growing[rows]).astype(np.int64)
            place = leaves[rows, spot]
            growing[rows] -= 1
            leaves[rows, spot] = leaves[rows, growing[rows]]
            # A list of n takes n + 1 more places; none may be left then, or three for a list of 2.
            partial = np.maximum(np.minimum(most, left[rows] - 4) - 1, 0)
            which = (coins[1, step, rows] * (partial + (left[rows] - 1 <= most))).astype(np.int64)
            size = np.where(which < partial, 2 + which, left[rows] - 1)
            first = length - left[rows]
            tokens[rows, place], tokens[rows, first + size] = operators[rows, step], CLOSE
            after[rows, first + size], after[rows, place] = after[rows, place], first
            level = depth[rows, place] + 1
            which, child = np.nonzero(np.arange(most) < size[:, None])
            depth[rows[which], first[which] + child] = level[which]
            which, child = np.nonzero((np.arange(most) < size[:, None]) & (level < self.config.depth)[:, None])
            leaves[rows[which], growing[rows[which]] + child] = first[which] + child
            growing[rows] += np.where(level < self.config.depth, size, 0)
            left[rows] -= size + 1
        everyone, place, written = np.arange(count), np.zeros(count, dtype=np.int64), np.empty_like(tokens)
        for t in range(length):
            written[:, t], place = tokens[everyone, place], after[everyone, place]
        return written

    def _values(self, inputs: Integers) -> Integers:
        """Reads all rows token by token; of every open list it counts each digit."""
        count, levels = len(inputs), self.config.depth + 1
        counts, operators = np.zeros((count, levels, MIN), dtype=np.int64), np.zeros((count, levels), dtype=np.int64)
        depth = np.zeros(count, dtype=np.int64)
        for value in inputs.T.copy():
            closing = np.flatnonzero(value == CLOSE)
            opening = np.flatnonzero((value >= MIN) & (value < CLOSE))
            value[closing] = _folded(operators[closing, depth[closing]], counts[closing, depth[closing]])
            depth[closing] -= 1
            depth[opening] += 1
            operators[opening, depth[opening]], counts[opening, depth[opening]] = value[opening], 0
            digit = np.flatnonzero(value < MIN)
            counts[digit, depth[digit], value[digit]] += 1
        return value

    def solve(self, inputs: Integers) -> Integers:
        """Calls itself for a list within a list."""

        def value(tokens: Iterator[int]) -> int:
            token, values = next(tokens), []
            if token < MIN or token == CLOSE:
                return token
            while (operand := value(tokens)) != CLOSE:
                values.append(operand)
            return int(FOLDS[token](values)) % 10

        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        targets[:, -1] = [value(iter(tokens)) for tokens in inputs.tolist()]
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        if name == "quick":
            return longer(cls.Config, {8: 60_000, 16: 60_000, 32: 50_000}, 256)
        return longer(cls.Config, {16: 100_000, 32: 100_000, 64: 100_000}, 1_000)


def _folded(operators: Integers, counts: Integers) -> Integers:
    """What lists come to, with operators [N] and counts of each digit [N, 10]."""
    below = counts.cumsum(axis=1)
    size = below[:, -1]
    least, lower, upper, most = ((below <= n[:, None]).sum(1) for n in (0 * size, (size - 1) // 2, size // 2, size - 1))
    return np.choose(operators - MIN, [least, most, (lower + upper) // 2, counts @ np.arange(MIN) % 10])

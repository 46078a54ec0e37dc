"""Modular arithmetic: what an expression of numbers, plus, minus and times comes to, mod m."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.chance import most_frequent
from synthe_core.tasks.draw import integers, octave
from synthe_core.tasks.lengths import longer
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Task

EQUALS, PLUS, MINUS, TIMES, OPEN, CLOSE = range(6)  # after the numbers
RANK = {OPEN: 0, PLUS: 1, MINUS: 1, TIMES: 2}


class ModularArithmetic(Task):
    """3 + 2 * 4 - 1 =: where the tokens so far are an expression, the target is its value (mod 5: 3, 0, 1, 0; at = 0).

    Times binds more closely than plus and minus. Tokens are the numbers of [0, modulus), then = + - * ( ). With
    `scored: end` the only target is the value at the =, as in the source. Without `brackets` a fixed number of states
    will do (what is summed, and the product that still grows); with them it takes a stack. There an operand opens a
    bracket with chance 0.3 wherever there is room, and an open bracket closes after each operand with chance 0.5.
    Slice: `position`, how many tokens were read, by powers of two.

    Source: Delétang et al. 2023, "Neural networks and the Chomsky hierarchy" (modular arithmetic, simple and with
    brackets; the latter here without their sign before a bracket).
    """

    class Config(Spec):
        type: Literal["modular-arithmetic"] = "modular-arithmetic"
        modulus: int = Field(5, ge=2)
        length: int = Field(32, ge=2, description="tokens of a sequence; even")
        brackets: int = Field(0, ge=0, le=64, description="how deep they nest at most; 0 is none")
        scored: Literal["always", "end"] = Field("always", description="where the value is a target")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.length % 2:
            raise InputError(
                f"modular-arithmetic: length must be even, not {config.length}",
                f"the next that fits is {config.length + 1}",
            )

    @property
    def vocab(self) -> int:
        return self.config.modulus + (CLOSE + 1 if self.config.brackets else OPEN)

    @property
    def chance(self) -> float:
        """Measured: the products of short expressions make 0 likelier than the others."""
        return most_frequent(self)

    def batch(self, count: int, rng: RandomState) -> Examples:
        inputs = self._texts(count, rng)
        targets = self._values(inputs)
        if self.config.scored == "end":
            targets[:, :-1] = UNSCORED
        position = np.tile(octave(np.arange(1, self.config.length + 1)), (count, 1))
        return Examples(inputs, targets, {"position": np.where(targets == UNSCORED, UNSCORED, position)})

    def _texts(self, count: int, rng: RandomState) -> Integers:
        """Random expressions and a = after each, `length` tokens in all.

        `room` is how many tokens are left before the = beyond one for each bracket to close: where an operand is due it
        is odd, and a number takes one of it and an opening bracket two.
        """
        modulus, shape = self.config.modulus, (count, self.config.length)
        inputs, operators = integers(rng, 0, modulus, shape), modulus + integers(rng, PLUS, OPEN, shape)
        coins = rng.random_sample(shape)
        depth, operand = np.zeros(count, dtype=np.int64), np.ones(count, dtype=bool)
        for t in range(self.config.length - 1):
            room = self.config.length - 1 - t - depth
            opens = operand & (coins[:, t] < 0.3) & (room >= 3) & (depth < self.config.brackets)
            closes = ~operand & (depth > 0) & ((coins[:, t] < 0.5) | (room == 0))
            inputs[opens, t], inputs[closes, t] = modulus + OPEN, modulus + CLOSE
            joins = ~operand & ~closes
            inputs[joins, t] = operators[joins, t]
            depth += opens.astype(np.int64) - closes
            operand = opens | joins
        inputs[:, -1] = modulus + EQUALS
        return inputs

    def _values(self, inputs: Integers) -> Integers:
        """Reads all rows token by token: for every open bracket what is summed, and the product that still grows."""
        modulus, rows = self.config.modulus, np.arange(len(inputs))
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        total = np.zeros((len(inputs), self.config.brackets + 1), dtype=np.int64)
        factor = np.ones_like(total)  # what the next operand is multiplied with, its sign included
        depth = np.zeros(len(inputs), dtype=np.int64)
        value = np.zeros(len(inputs), dtype=np.int64)  # of the operand that was just completed
        for t, token in enumerate(inputs.T):
            sign = token - modulus
            opens, closes, times = sign == OPEN, sign == CLOSE, sign == TIMES
            value = np.where(sign < 0, token, value)
            level = (total[rows, depth] + factor[rows, depth] * value) % modulus
            value = np.where(closes, level, value)
            depth += opens.astype(np.int64) - closes
            total[rows[opens], depth[opens]], factor[rows[opens], depth[opens]] = 0, 1
            factor[rows[times], depth[times]] = factor[rows[times], depth[times]] * value[times] % modulus
            adds = (sign == PLUS) | (sign == MINUS)
            total[rows[adds], depth[adds]] = level[adds]
            factor[rows[adds], depth[adds]] = np.where(sign[adds] == PLUS, 1, -1)
            whole = ((sign < 0) | closes | (sign == EQUALS)) & (depth == 0)
            targets[whole, t] = ((total[:, 0] + factor[:, 0] * value) % modulus)[whole]
        return targets

    def solve(self, inputs: Integers) -> Integers:
        """Dijkstra's shunting yard on exact integers, what waits being carried out at every whole expression."""
        modulus = self.config.modulus
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        for row, tokens in enumerate(inputs.tolist()):
            values: list[int] = []
            waiting: list[int] = []
            for place, token in enumerate(tokens):
                sign = token - modulus
                if sign < 0:
                    values.append(token)
                elif sign == EQUALS:
                    _carry_out(values, waiting, RANK[PLUS])
                elif sign == OPEN:
                    waiting.append(sign)
                elif sign == CLOSE:
                    _carry_out(values, waiting, RANK[PLUS])
                    waiting.pop()
                else:
                    _carry_out(values, waiting, RANK[sign])
                    waiting.append(sign)
                if (sign < 0 or sign in (CLOSE, EQUALS)) and OPEN not in waiting:
                    rest = values.copy()
                    _carry_out(rest, waiting.copy(), RANK[PLUS])
                    targets[row, place] = rest[0] % modulus
        if self.config.scored == "end":
            targets[:, :-1] = UNSCORED
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        if name == "quick":
            return longer(cls.Config, {4: 100_000, 8: 50_000, 16: 50_000, 32: 30_000}, 128)
        return longer(cls.Config, {8: 50_000, 16: 50_000, 32: 50_000, 64: 100_000}, 500)


def _carry_out(values: list[int], waiting: list[int], rank: int) -> None:
    """Carries out the operators on top of `waiting` that bind at least as closely as `rank`."""
    while waiting and RANK[waiting[-1]] >= rank:
        sign, right = waiting.pop(), values.pop()
        left = values.pop()
        values.append(left * right if sign == TIMES else left + right if sign == PLUS else left - right)

"""A stack: what is pushed last is popped first."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import integers, octave
from synthe_core.tasks.lengths import longer
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Task

POP = 0
TURN = 0.3  # chance that a run of pushes or pops ends: with 0.5, half of all pops would undo the push just before


class Stack(Task):
    """a b POP c POP POP: the target at each POP is the symbol that it removes: b, c, a.

    Tokens of [1, symbols] push themselves; POP is 0 and never meets an empty stack, nor is more pushed than `depth`.
    These are the prefixes of a Dyck language of `symbols` kinds of brackets; the targets are the kinds of the closing
    brackets.
    Pushes and pops come in runs. Slices: `depth`, of the stack before the pop, and `ago`, how many tokens ago the
    symbol was pushed, by powers of two.

    Sources: Suzgun et al. 2019 (Dyck languages); Hewitt et al. 2020 (of bounded depth); Delétang et al. 2023, whose
    "stack manipulation" asks for the whole stack at the end.
    """

    class Config(Spec):
        type: Literal["stack"] = "stack"
        symbols: int = Field(8, ge=2)
        depth: int = Field(8, ge=1, description="what the stack holds at most")
        length: int = Field(32, ge=2, description="tokens of a sequence")

    @property
    def vocab(self) -> int:
        return self.config.symbols + 1

    @property
    def chance(self) -> float:
        return 1 / self.config.symbols

    def batch(self, count: int, rng: RandomState) -> Examples:
        shape, deepest, rows = (count, self.config.length), self.config.depth, np.arange(count)
        inputs = integers(rng, 1, self.vocab, shape)
        turns = rng.random_sample(shape) < TURN
        targets, ago, depths = (np.full(shape, UNSCORED, dtype=np.int64) for _ in range(3))
        pushed = np.zeros((count, deepest), dtype=np.int64)  # when each level of the stack was filled
        depth, pushing = np.zeros(count, dtype=np.int64), np.ones(count, dtype=bool)
        for t in range(self.config.length):
            pushing = (pushing ^ turns[:, t] | (depth == 0)) & (depth < deepest)
            if t == self.config.length - 1:  # so that each row has a target
                pushing = depth == 0
            down, up = rows[pushing], rows[~pushing]
            pushed[down, depth[down]] = t
            before = pushed[up, depth[up] - 1]
            targets[up, t], depths[up, t], ago[up, t] = inputs[up, before], depth[up], octave(t - before)
            inputs[up, t] = POP
            depth += np.where(pushing, 1, -1)
        return Examples(inputs, targets, {"depth": depths, "ago": ago})

    def solve(self, inputs: Integers) -> Integers:
        """A list for each row."""
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        for row, tokens in enumerate(inputs.tolist()):
            stack: list[int] = []
            for place, token in enumerate(tokens):
                if token == POP:
                    targets[row, place] = stack.pop()
                else:
                    stack.append(token)
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        if name == "quick":
            return longer(cls.Config, {4: 100_000, 8: 50_000, 16: 50_000, 32: 30_000}, 128)
        return longer(cls.Config, {8: 50_000, 16: 50_000, 32: 50_000, 64: 100_000}, 500)

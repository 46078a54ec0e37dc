"""Parity: whether the number of ones so far is odd, with a target after every bit."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import integers, octave
from synthe_core.tasks.lengths import longer
from synthe_core.tasks.task import Examples, Integers, Preset, PresetName, Task


class Parity(Task):
    """0 1 1 0 1: answers 0 1 0 0 1.

    Bits are independent and uniform. A target after every bit, not only after the last, gives every shorter string
    too. Slice: `position`, how many bits were read, by powers of two. A linear recurrence whose transitions have real
    eigenvalues, none of them negative, cannot do it at every length: the delta rule needs β beyond 1.

    Sources: Hahn 2020; Delétang et al. 2023, "Neural networks and the Chomsky hierarchy"; Grazzi et al. 2025.
    """

    class Config(Spec):
        type: Literal["parity"] = "parity"
        length: int = Field(32, ge=1, description="bits of a sequence")

    @property
    def vocab(self) -> int:
        return 2

    @property
    def chance(self) -> float:
        return 1 / 2

    def batch(self, count: int, rng: RandomState) -> Examples:
        inputs = integers(rng, 0, 2, (count, self.config.length))
        position = np.tile(octave(np.arange(1, self.config.length + 1)), (count, 1))
        return Examples(inputs, np.cumsum(inputs, axis=1) % 2, {"position": position})

    def solve(self, inputs: Integers) -> Integers:
        """A switch that every 1 turns over."""
        return np.bitwise_xor.accumulate(inputs, axis=1)

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        if name == "quick":
            return longer(cls.Config, {4: 50_000, 8: 25_000, 16: 25_000, 32: 15_000}, 128)
        return longer(cls.Config, {8: 50_000, 16: 50_000, 32: 50_000, 64: 100_000}, 500)

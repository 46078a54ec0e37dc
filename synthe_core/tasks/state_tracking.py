"""State tracking: the word problem of a group, with a target after every token."""

from __future__ import annotations

from copy import copy
from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import integers, octave
from synthe_core.tasks.groups import group
from synthe_core.tasks.lengths import longer
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Task

LEVELS = 10  # the number of times that elements join with `grow`


class StateTracking(Task):
    """g1 g2 g3 ...: the target after each element is the product of all so far, g1, g1·g2, g1·g2·g3 ...

    Tokens are the elements, each drawn alone; 0 is the identity. S3 and S4 are solvable groups, A5 and S5 are not:
    their word problem is complete for NC¹, which attention and diagonal recurrences of a fixed depth are thought not to
    reach. With `elements: swaps` only those are drawn that swap two points: they generate Sn, and each is one
    reflection, for which one delta step a token suffices (Siems et al. 2025). With `start` a token without a target
    comes first, as in the published trials: a memory that multiplies its state by every element needs a state that is
    not zero. With `grow`, which is ours, training starts with the smallest conjugacy class that generates the group
    (the swaps of S5, twelve 5-cycles of A5). Each time these are learned, a tenth of the other elements joins, those
    first that are products of the fewest of the class. Tests are of all elements. Slice: `position`, how
    many elements are in the product, by powers of two.

    Sources: Liu et al. 2023, "Transformers learn shortcuts to automata"; Merrill et al. 2024, "The illusion of state in
    state-space models"; Grazzi et al. 2025; Siems et al. 2025.
    """

    class Config(Spec):
        type: Literal["state-tracking"] = "state-tracking"
        group: str = Field("S3", description="Z2 ... Z120 (addition mod n), S3 ... S5, A3 ... A5 (permutations)")
        elements: Literal["all", "swaps"] = Field("all", description="which are drawn: swaps move two points only")
        length: int = Field(32, ge=1, description="elements of a sequence")
        start: bool = Field(False, description="a token before the first element, without a target")
        grow: bool = Field(False, description="training starts with a few elements; others join as they are learned")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.group = group(config.group)
        self.drawn = np.arange(self.group.order)
        if config.grow:
            if config.elements != "all":
                raise InputError("grow: true ends with all elements, not with swaps", "leave out one of the two")
            self.first = self.group.generators()
            others = RandomState(0).permutation(np.setdiff1d(self.drawn, self.first))  # always in this order
            self.others = others[np.argsort(self.group.steps(self.first)[others], kind="stable")]
        if config.elements == "swaps":
            moved = self.group.permutations != self.group.permutations[0]
            self.drawn = np.flatnonzero(moved.sum(1) == 2)
            if not len(self.drawn) or config.group[0] == "Z":
                raise InputError(
                    f"no element of {config.group} swaps two points", "take S3, S4 or S5, or elements: all"
                )

    @property
    def vocab(self) -> int:
        return self.group.order + self.config.start

    @property
    def chance(self) -> float:
        return (1 if self.config.elements == "all" else 2) / self.group.order  # after n swaps the sign is known

    def batch(self, count: int, rng: RandomState) -> Examples:
        inputs = self.drawn[integers(rng, 0, len(self.drawn), (count, self.config.length))]
        targets = inputs.copy()
        for t in range(1, self.config.length):
            targets[:, t] = self.group.table[targets[:, t - 1], inputs[:, t]]
        position = np.tile(octave(np.arange(1, self.config.length + 1)), (count, 1))
        if self.config.start:
            ahead = ((0, 0), (1, 0))
            inputs = np.pad(inputs, ahead, constant_values=self.group.order)
            targets, position = (np.pad(labels, ahead, constant_values=UNSCORED) for labels in (targets, position))
        return Examples(inputs, targets, {"position": position})

    @property
    def levels(self) -> int:
        return LEVELS if self.config.grow else 0

    def at_level(self, level: int) -> StateTracking:
        if level == self.levels:
            return self
        task = copy(self)
        task.drawn = np.sort(np.append(self.first, self.others[: len(self.others) * level // self.levels]))
        return task

    def solve(self, inputs: Integers) -> Integers:
        """Moves points by permutations, without the group's table."""
        targets = np.full_like(inputs, UNSCORED)
        product = np.tile(self.group.permutations[0], (len(inputs), 1))
        for t in range(int(self.config.start), inputs.shape[1]):
            product = np.take_along_axis(product, self.group.permutations[inputs[:, t]], axis=1)
            targets[:, t] = self.group.number(product)
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        if name == "quick":
            return longer(cls.Config, {4: 50_000, 8: 25_000, 16: 25_000, 32: 15_000}, 128)
        return longer(cls.Config, {8: 50_000, 16: 50_000, 32: 50_000, 64: 100_000}, 500)

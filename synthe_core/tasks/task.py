"""The contract of a synthetic task: a distribution over sequences whose answers follow from what was read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.random import RandomState  # its streams are frozen by NumPy's promise: the same on every machine and version

from synthe_core.layers.learner import Spec

Integers = np.ndarray[Any, np.dtype[np.int64]]
UNSCORED = -100


class Examples(NamedTuple):
    """inputs int64 [N, T]; targets int64 [N, T], the token expected after each input, UNSCORED where none is asked.

    slices: further labels of scored tokens, int64 [N, T] by name (was this key overwritten? how long ago?): accuracy
    is reported for each value of each.
    """

    inputs: Integers
    targets: Integers
    slices: dict[str, Integers] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)


class Share(NamedTuple):
    """`examples` sequences of the task with these settings."""

    config: Any
    examples: int


class Preset(NamedTuple):
    """What a model trains on and what it is tested on. Shares of `train` are mixed batch by batch.

    lr: the peak learning rate where the task wants another than the preset's usual one.
    """

    train: list[Share]
    test: list[Share]
    lr: float | None = None


PresetName = Literal["quick", "standard", "zoology"]


class Task(ABC):
    """One distribution: the table's entry with its Config filled in. Examples come from `batch`, answers from `solve`.

    `axis` names the Config's key that tells how hard a slice is (pairs, length): tables and plots run along it.
    """

    Config: ClassVar[type[Spec]]
    axis: ClassVar[str] = "length"

    def __init__(self, config: Any) -> None:
        """InputError where the sizes do not go together, with the smallest that do."""
        self.config = config

    @property
    @abstractmethod
    def vocab(self) -> int:
        """Tokens are below this."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The accuracy of the best guess that ignores the text before it."""

    @abstractmethod
    def batch(self, count: int, rng: RandomState) -> Examples:
        """`count` sequences drawn from `rng`: the same seed gives the same bytes everywhere."""

    @property
    def levels(self) -> int:
        """How many harder versions training goes through on its way to this task; 0: it begins with the task itself."""
        return 0

    def at(self, level: int) -> Task:
        """What is trained on at that level, from 0 up to `levels`: the last is this task, and tests are of it."""
        return self

    @abstractmethod
    def solve(self, inputs: Integers) -> Integers:
        """The targets of `inputs` [N, T], worked out from the inputs alone and not as `batch` made them."""

    @classmethod
    @abstractmethod
    def preset(cls, name: PresetName) -> Preset:
        """`quick` takes about a minute on a CPU, `standard` is the size of papers' small runs, `zoology` theirs."""

"""The contract of a synthetic task: a distribution over sequences whose targets follow from the tokens before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.random import RandomState  # NumPy guarantees its streams: the same on every machine and version

from synthe_core.layers.learner import Spec

Integers = np.ndarray[Any, np.dtype[np.int64]]
UNSCORED = -100


class Examples(NamedTuple):
    """inputs int64 [N, T]; targets int64 [N, T], the token expected after each input, UNSCORED where there is none.

    slices: labels of scored tokens, int64 [N, T] by name (was this key overwritten? how long ago?); accuracy is
    reported for each value of each label.
    """

    inputs: Integers
    targets: Integers
    slices: dict[str, Integers] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)


class Share(NamedTuple):
    """`examples` sequences of the task with these settings."""

    config: Any
    examples: int


class Preset(NamedTuple):
    """The training and test sets of a task. Batches of the shares of `train` are mixed at random.

    lr: the peak learning rate, if it is not the preset's usual one.
    """

    train: list[Share]
    test: list[Share]
    lr: float | None = None


PresetName = Literal["quick", "standard", "zoology"]


class Task(ABC):
    """One distribution: an entry of the table with its Config. `batch` makes examples, `solve` their answers.

    axis: the Config's key of a share's difficulty (pairs, length), the axis of tables and charts.
    """

    Config: ClassVar[type[Spec]]
    axis: ClassVar[str] = "length"

    def __init__(self, config: Any) -> None:
        """InputError if the sizes are inconsistent, with the smallest that are not."""
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
        """The number of easier versions that training starts with; 0: it starts with the task itself."""
        return 0

    def at_level(self, level: int) -> Task:
        """The version that is trained at that level, from 0 to `levels`. The last is this task, which is tested."""
        return self

    @abstractmethod
    def solve(self, inputs: Integers) -> Integers:
        """The targets of `inputs` [N, T], computed from the inputs alone, independently of `batch`."""

    @classmethod
    @abstractmethod
    def preset(cls, name: PresetName) -> Preset:
        """`quick` takes about a minute on a CPU, `standard` is the size of papers' small runs, `zoology` theirs."""

"""Measured chance levels, for tasks without a simple formula."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import RandomState

from synthe_core.layers.learner import Spec
from synthe_core.tasks.task import UNSCORED, Task

TOKENS = 200_000
SEED = 20_260_101


def most_frequent(task: Task) -> float:
    """The accuracy of the most frequent answer, in a fixed sample of 200,000 tokens."""
    return _measure(type(task), task.config)


@lru_cache
def _measure(kind: type[Task], config: Spec) -> float:
    task = kind(config)
    targets = task.batch(-(-TOKENS // task.config.length), RandomState(SEED)).targets
    counts = np.bincount(targets[targets != UNSCORED])
    return float(counts.max() / counts.sum())

"""Chance levels that no simple formula gives, measured."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import RandomState

from synthe_core.layers.learner import Spec
from synthe_core.tasks.task import UNSCORED, Task

TOKENS = 200_000
SEED = 20_260_101


def commonest(task: Task) -> float:
    """How often the most frequent answer of all is right, in a sample of 200,000 tokens that is always the same."""
    return _measured(type(task), task.config)


@lru_cache
def _measured(kind: type[Task], config: Spec) -> float:
    task = kind(config)
    targets = task.batch(-(-TOKENS // task.config.length), RandomState(SEED)).targets
    counts = np.bincount(targets[targets != UNSCORED])
    return float(counts.max() / counts.sum())

"""The mean over questions and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Mean(NamedTuple):
    """value: the mean. low, high: the 95% interval by resampling questions."""

    value: float
    low: float
    high: float


def mean_of(values: Sequence[float]) -> Mean | None:
    """The mean of one value a question, with its percentile bootstrap interval; None for none. The draws are seeded."""
    if not values:
        return None
    rows = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    low, high = np.percentile(rows[draws].mean(1), [2.5, 97.5])
    return Mean(float(rows.mean()), float(low), float(high))

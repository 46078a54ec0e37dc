"""Points of a known law."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthe_core.scaling.law import Law
from synthe_core.scaling.points import Point

REANALYSIS = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
"""Besiroglu et al. 2024, arXiv 2404.10102."""
INTERVALS = {
    "E": (1.769, 1.871),
    "A": (285.2, 743.6),
    "B": (1042.4, 5810.3),
    "alpha": (0.317, 0.373),
    "beta": (0.331, 0.415),
}
"""Its 95 % intervals."""


def points_of(
    law: Law, sizes: Sequence[float], tokens: Sequence[float], noise: float = 0.0, seed: int = 0, learner: str = "delta"
) -> list[Point]:
    """A point for each size and number of tokens, with log-normal noise in the loss."""
    random = np.random.default_rng(seed)
    return [
        Point(
            n, d, law.loss(n, d) * float(np.exp(noise * random.standard_normal())), 6 * n * d, learner, f"{n:g}-{d:g}"
        )
        for n in sizes
        for d in tokens
    ]

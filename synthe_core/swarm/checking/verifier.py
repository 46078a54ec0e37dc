"""What judges whether one sentence contradicts another, where no rule does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Verifier(Protocol):
    """threshold: the probability from which a pair counts as a contradiction."""

    threshold: float

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """float [N]: the probability that the second sentence of each pair contradicts the first."""
        ...

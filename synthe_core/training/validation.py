"""How much text a validation reads, and how long the last one took."""

from __future__ import annotations

import math

from synthe_core.budget import Budget
from synthe_core.recipe.schema import TrainSpec
from synthe_core.training.data import TrainingData

SHARE = 0.1  # of a budget of time, for all validations together
FORWARD = 3.0  # times faster than a training step, which goes forward and backward


class ValidationPlan:
    """The size of validations, so that with a budget of time they take a bounded share of it.

    seconds: of the last validation; None before the first.
    """

    def __init__(self, spec: TrainSpec, data: TrainingData) -> None:
        self._spec, self._data = spec, data
        self.seconds: float | None = None

    @property
    def _seconds_allowed(self) -> float:
        budget: Budget = self._spec.budget
        return SHARE * budget.amount / self._spec.validations if budget.unit == "seconds" else math.inf

    @property
    def full(self) -> int:
        """Windows of a validation without a limit of time."""
        return min(
            self._data.num_validation_windows, max(1, self._spec.validation_tokens // self._data.validation_length)
        )

    def windows(self, tokens_per_second: float | None) -> int:
        """How many windows a validation reads when training runs at `tokens_per_second` (None: not known yet)."""
        length = self._data.validation_length
        count = max(1, self._spec.validation_tokens // length)
        if tokens_per_second is not None and math.isfinite(self._seconds_allowed):
            count = min(count, max(1, int(FORWARD * tokens_per_second * self._seconds_allowed / length)))
        return min(count, self._data.num_validation_windows)

    def reserve(self, tokens_per_second: float | None) -> float:
        """Seconds that the next validation is expected to take."""
        if self.seconds is not None:
            return self.seconds
        if tokens_per_second is None or not self._data.num_validation_windows:
            return 0.0
        return min(self._spec.validation_tokens / (FORWARD * tokens_per_second), self._seconds_allowed)

"""Where training stands, and what that means for the budget."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from synthe_core.budget import Budget


@dataclass
class Position:
    """Steps taken, tokens read in them, and seconds of wall-clock time since the first step.

    Steps that were skipped count neither as steps nor as tokens; they take time. Time runs from the first step of a
    session to its end, through validation, sampling and saving, and adds up over sessions; getting ready (reading
    text, compiling, measuring) is not counted. `validated` is how many of the validations are done.
    """

    step: int = 0
    tokens: int = 0
    validated: int = 0
    _before: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def begin(self) -> None:
        """Starts the clock of a session."""
        self._began = time.monotonic()

    def fraction(self, budget: Budget, reserve: float = 0.0) -> float:
        """Of the budget that is spent, 1 at the end. Of a budget of time, `reserve` seconds are for what follows."""
        if budget.unit == "seconds":
            return min(1.0, self.seconds / max(budget.amount - reserve, 1e-3))
        return min(1.0, budget.fraction(tokens=self.tokens, steps=self.step, seconds=0.0))

    def since(self, earlier: Position, every: Budget) -> bool:
        """Whether `every` has passed since an `earlier` position (see `mark`)."""
        spent = every.fraction(
            tokens=self.tokens - earlier.tokens, steps=self.step - earlier.step, seconds=self.seconds - earlier._before
        )
        return spent >= 1

    def mark(self) -> Position:
        """A position that stays where this one is now."""
        return Position(self.step, self.tokens, self.validated, self.seconds)

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "tokens": self.tokens, "validated": self.validated, "seconds": self.seconds}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Position:
        return cls(facts["step"], facts["tokens"], facts["validated"], facts["seconds"])

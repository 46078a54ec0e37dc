"""Whether several sequences are decoded with drafts or without, by what both ways brought."""

from __future__ import annotations

from synthe_core.inference.speculation.draft_length import PassCosts

TRIAL, EARLY = 16, 5
"""Passes with drafts after which both ways are compared; drafts that bring far less are given up sooner."""
FAR_LESS = 0.9
FIRST_WAIT, LONGEST_WAIT = 8, 1024
"""Passes without drafts before they are tried, and tried again; twice as many each time that they lose."""


class Comparison:
    """Of one model; it goes on from one request to the next, so that short texts do not pay for a trial each.

    drafts_now: the way that passes go.
    """

    def __init__(self) -> None:
        self.drafts_now = False
        self._wait = FIRST_WAIT
        self._count, self._tokens, self._seconds = 0, 0.0, 0.0

    def decide(self, num_sequences: int, batch_costs: PassCosts) -> bool:
        """Which way the next pass goes. batch_costs: of passes without drafts, by their sequences."""
        if not self.drafts_now:
            self._count += 1
            if self._count > self._wait:
                self._begin(True)
        elif self._count >= EARLY:
            seconds = batch_costs.estimate(num_sequences)
            gain = self._tokens / self._seconds * seconds / num_sequences if seconds else 1.0
            if gain < (1.0 if self._count >= TRIAL else FAR_LESS):
                self.turn_off()
                self._count = 1  # this pass
            elif self._count >= TRIAL:
                self._wait = FIRST_WAIT
                self._begin(True)
        return self.drafts_now

    def record(self, tokens: float, seconds: float) -> None:
        """A pass with drafts brought so many tokens."""
        self._count, self._tokens, self._seconds = self._count + 1, self._tokens + tokens, self._seconds + seconds

    def turn_off(self) -> None:
        """No drafts for a while: they lost, or failed."""
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._begin(False)

    def _begin(self, drafts_now: bool) -> None:
        self.drafts_now = drafts_now
        self._count, self._tokens, self._seconds = 0, 0.0, 0.0

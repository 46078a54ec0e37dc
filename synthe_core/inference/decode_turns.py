"""Which running sequences the next pass generates for: clients with few rows get passes of their own."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence as Many
from statistics import median

from synthe_core.inference.sequence import Sequence

GAP = 1.75
"""How many times the duration of a pass over the light clients' rows their tokens are apart on average, about."""
MAX_SHORT = 64
"""Passes over the light clients' rows between two over all."""
PROBE = 64
"""Passes over all after which the duration of a short one is measured anew."""
RECENT = 9
"""Passes of a kind whose median duration counts."""


def light_sequences(sequences: Many[Sequence]) -> list[Sequence]:
    """Those of clients that have at most half as many as clients have on average."""
    rows = Counter(sequence.request.client for sequence in sequences)
    if len(rows) < 2:
        return []
    most = len(sequences) / len(rows) / 2
    return [sequence for sequence in sequences if rows[sequence.request.client] <= most]


class DecodeTurns:
    """Chooses the sequences of each pass: all, or only the light ones, where a client with many rows makes a pass long.

    With n short passes of duration s between two over all, of duration a, a light client's tokens are
    (n s + a) / (n + 1) apart on average. n is the least integer of a / s - `GAP` or more: 0 where a pass over all takes
    little longer than a short one. The tokens are then less than 2 s apart, and the passes over all get half of the
    time or more, until n is limited to `MAX_SHORT`. Durations are medians, which a hiccup does not move. What a
    sequence generates does not depend on its turns.
    """

    def __init__(self) -> None:
        self._short: deque[float] = deque(maxlen=RECENT)
        self._full: deque[float] = deque(maxlen=RECENT)
        self._due = 0  # short passes before the next one over all
        self._since = 0  # passes over all since the last short one

    def next(self, sequences: Many[Sequence]) -> Many[Sequence]:
        """The sequences of the next pass: all of `sequences`, or some of them."""
        light = light_sequences(sequences)
        if not light:
            self._short.clear()
            self._full.clear()
            self._due = 0
            return sequences
        if self._due:
            self._due -= 1
            self._since = 0
            return light
        self._since += 1
        self._due = self._num_short()
        return sequences

    def record(self, seconds: float, is_short: bool) -> None:
        """Takes the duration of a pass."""
        (self._short if is_short else self._full).append(seconds)

    def _num_short(self) -> int:
        """How many short passes follow the next one over all."""
        if not self._short or self._since >= PROBE:
            return 1
        if not self._full:
            return 0
        ratio = median(self._full) / max(median(self._short), 1e-9)
        return min(MAX_SHORT, max(0, math.ceil(ratio - GAP)))

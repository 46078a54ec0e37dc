"""How long drafts are: as long as another token brings more than it costs, by what was measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

RECENT = 5
"""Passes of a size that count."""
SLOPE = 0.08
"""What another token costs in a pass, of what a pass of one token costs, before it was measured."""
FIRST_RATE, FIRST_WEIGHT = 0.7, 2.0
"""The rate at which drafted tokens are accepted before any was verified, and how many tokens that counts as."""
LONGEST_MATCH = 8
"""Matches of so many tokens and more have one rate."""
MEMORY = 30.0
"""Drafted tokens that count; older ones fade."""
RETRY, LONGEST_RETRY = 16, 512
"""A sequence without drafts gets a short one after so many passes; twice as many each time that it brings nothing."""


class PassCosts:
    """Seconds of a pass by the number of its tokens: the least of the last ones of that size, as other work on the
    machine only ever adds; between sizes a straight line."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}

    def record(self, num_tokens: int, seconds: float) -> None:
        self._recent.setdefault(num_tokens, deque(maxlen=RECENT)).append(seconds)

    def estimate(self, num_tokens: int) -> float:
        """Of a pass of so many tokens; 0 before any was measured."""
        known = sorted((size, min(values)) for size, values in self._recent.items())
        if not known:
            return 0.0
        below = [each for each in known if each[0] <= num_tokens]
        above = [each for each in known if each[0] >= num_tokens]
        if below and above:
            (a, first), (b, second) = below[-1], above[0]
            return first if a == b else first + (second - first) * (num_tokens - a) / (b - a)
        if above:  # what a smaller one costs at least, so that it is tried
            size, seconds = above[0]
            return seconds * num_tokens / size
        size, seconds = below[-1]
        return seconds / (1 + SLOPE * (size - 1)) * (1 + SLOPE * (num_tokens - 1))


class _Rate:
    """The share of tested tokens that were accepted; older ones fade."""

    def __init__(self) -> None:
        self._accepted, self._tested = FIRST_RATE * FIRST_WEIGHT, FIRST_WEIGHT

    @property
    def value(self) -> float:
        return self._accepted / self._tested

    def record(self, is_accepted: bool) -> None:
        fade = 1 - 1 / MEMORY if self._tested + 1 > MEMORY else 1.0
        self._accepted, self._tested = self._accepted * fade + is_accepted, self._tested * fade + 1


@dataclass
class Acceptance:
    """How many of a sequence's drafted tokens are accepted, and since how many passes it has had no draft.

    The longer a match is, with the drafted tokens that were accepted behind it, the likelier is the next one: each
    length up to LONGEST_MATCH has a rate of its own. Drafts without a length have one rate.
    """

    idle: int = 0
    retry: int = RETRY
    _rates: dict[int | None, _Rate] = field(default_factory=dict, repr=False)

    def rates(self, most: int, matched: int | None = None) -> list[float]:
        """Of each of `most` drafted tokens the probability that it is accepted if those before it are."""
        return [self._rate(place, matched).value for place in range(most)]

    def record(self, drafted: int, accepted: int, matched: int | None = None) -> None:
        """A draft was verified; the tokens behind the first rejected one were not tested."""
        if not drafted:
            self.idle += 1
            return
        for place in range(accepted + (accepted < drafted)):
            self._rate(place, matched).record(place < accepted)
        if self.idle:
            self.retry = RETRY if accepted else min(2 * self.retry, LONGEST_RETRY)
        self.idle = 0

    def _rate(self, place: int, matched: int | None) -> _Rate:
        length = None if matched is None else min(matched + place, LONGEST_MATCH)
        return self._rates.setdefault(length, _Rate())


def draft_lengths(
    rates: Sequence[Sequence[float]], most: Sequence[int], costs: PassCosts, seconds_per_draft: float = 0.0
) -> list[int]:
    """How many tokens to draft for each sequence so that a pass brings most tokens a second.

    rates: r_ij of each drafted token j of sequence i, that it is accepted if those before it are. A pass of n sequences
    and drafts d_i brings sum_i (1 + r_i1 + ... + r_i1 r_i2 ... r_id_i) tokens on average and takes
    cost(n + sum_i d_i) + s max_i d_i seconds, with s = `seconds_per_draft`. Tokens are added by their probability as
    long as that ratio grows; since costs are no smooth curve, the best number of all is taken.
    """
    lengths = [0] * len(rates)
    best, best_rate = list(lengths), 0.0
    tokens, size = float(len(rates)), len(rates)
    candidates = sorted(
        (-chance, place, row)
        for row, own in enumerate(rates)
        for place, chance in enumerate(accumulate(own[: most[row]], mul))
    )
    position = 0
    while True:
        seconds = costs.estimate(size) + seconds_per_draft * max(lengths, default=0)
        if not seconds:  # nothing was measured yet
            return lengths
        if tokens / seconds > best_rate * (1 + 1e-9):
            best, best_rate = list(lengths), tokens / seconds
        if position == len(candidates):
            return best
        negative, _, row = candidates[position]
        tokens, size, position = tokens - negative, size + 1, position + 1
        lengths[row] += 1

"""What the router decides about a request, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """A specialist in the router's eyes.

    estimate: its success that is expected, about 0 to 1. deviation: the standard deviation of that estimate.
    cold:     the share of its capabilities in the request's meaning, before anything is learned.
    share:    its share of the words that requests and successes have in common.
    words:    those words of the request, the rarest first.
    observations: rated answers that the estimate is made of.
    """

    name: str
    estimate: float
    deviation: float
    cold: float
    share: float
    words: tuple[str, ...] = ()
    observations: int = 0

    @property
    def probability(self) -> float:
        """The estimate as people read it: between 0 and 1. What is compared is the estimate itself."""
        return min(1.0, max(0.0, self.estimate))


@dataclass(frozen=True)
class Decision:
    """Who answers.

    specialists: in the order of their estimates; empty where the fallback answers.
    fallback:    who answers then.
    explored:    whether the first is not the best, to learn about it.
    domain:      the capability nearest to the request.
    candidates:  all specialists, the best first.
    why:         a sentence.
    seconds:     what the decision took, the embedding included.
    """

    specialists: tuple[str, ...]
    fallback: str
    explored: bool
    domain: str
    candidates: tuple[Candidate, ...]
    why: str
    seconds: float = 0.0

    @property
    def answering(self) -> tuple[str, ...]:
        """The names of those who answer: the fallback's, if nobody else."""
        return self.specialists or (self.fallback,)

    def json(self) -> dict[str, Any]:
        """The decision for the extension field of a reply."""
        return {
            "specialists": list(self.answering),
            "fallback": not self.specialists,
            "explored": self.explored,
            "domain": self.domain,
            "why": self.why,
            "estimates": {each.name: round(each.probability, 4) for each in self.candidates},
        }

"""What a swarm reports while it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synthe_core.swarm.router.decision import Decision


@dataclass(frozen=True)
class Routed:
    """Who answers, and why. answer_id: under which the answer will be recorded. facts: what is known of the matter and
    stands in the prompts, in words."""

    answer_id: str
    decision: Decision
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class DraftToken:
    """A piece of the text of one of several specialists, of which the answer is made later."""

    specialist: str
    text: str


@dataclass(frozen=True)
class AnswerToken:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class Draft:
    """What one specialist has answered. reason: why it ended; "error" with a message. confidence: calibrated.
    digests: of the weights that generated it, by specialist. num_remembered_tokens: prompt tokens that were not read,
    because its remembered state had read them."""

    specialist: str
    text: str
    reason: str
    confidence: float
    signals: Mapping[str, float]
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    message: str = ""
    contradictions: tuple[Any, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    num_remembered_tokens: int = 0

    def json(self) -> dict[str, Any]:
        """For the extension field of a reply."""
        remembered = {"remembered_tokens": self.num_remembered_tokens} if self.num_remembered_tokens else {}
        return {"specialist": self.specialist, "confidence": round(self.confidence, 4), **remembered}


@dataclass(frozen=True)
class Answered:
    """The end of every answer.

    by:             whose text it is: a specialist, `base`, or several joined by + for a mixture.
    confidence:     the calibrated probability that it is right.
    contradictions: of it with what is known, each as JSON values.
    drafts:         of every specialist that was asked.
    seconds:        from the request on.
    degraded:       why another specialist answers than the one that should; "" if none does.
    """

    answer_id: str
    text: str
    by: str
    reason: str
    confidence: float
    drafts: Sequence[Draft]
    contradictions: Sequence[Mapping[str, Any]]
    seconds: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    degraded: str = ""

    def json(self) -> dict[str, Any]:
        """For the extension field of a reply."""
        return {
            "answer_id": self.answer_id,
            "by": self.by,
            "confidence": round(self.confidence, 4),
            "drafts": [draft.json() for draft in self.drafts],
            "contradictions": list(self.contradictions),
            **({"degraded": self.degraded} if self.degraded else {}),
        }


SwarmEvent = Routed | DraftToken | AnswerToken | Answered

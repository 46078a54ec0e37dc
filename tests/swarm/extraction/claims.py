"""Claims as short texts, for comparison."""

from __future__ import annotations

from synthe_core.swarm.knowledge.fact import Claim


def in_words(claim: Claim) -> str:
    return f"{claim.subject}: {'not ' if claim.negated else ''}{claim.predicate}: {claim.object}"

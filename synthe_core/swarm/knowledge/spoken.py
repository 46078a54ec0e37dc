"""A fact as a sentence, which models understand better than its three parts."""

from __future__ import annotations

from synthe_core.swarm.knowledge.fact import USER, Claim, key

_VERBS = {
    "lives": "live", "works": "work", "likes": "like", "prefers": "prefer", "speaks": "speak", "uses": "use",
    "has": "have", "owns": "own",
}  # fmt: skip
_PARTICIPLES = frozenset(("allergic", "born", "directed", "founded", "located", "married", "released", "written"))


def spoken(claim: Claim) -> str:
    """A claim as a sentence, in which the user is `you`, as in an answer."""
    of_user, (first, *rest) = key(claim.subject) == USER, claim.predicate.split() or [""]
    subject, denied = "You" if of_user else claim.subject, ["not"] if claim.negated else []
    if first in _VERBS:
        verb = [_VERBS[first] if of_user or denied else first]
        if denied:
            verb = ["do" if of_user else "does", "not", *verb]
    elif first in _PARTICIPLES:
        verb = [_be(first) if of_user else "was", *denied, first]
    else:
        subject, verb, rest = "Your" if of_user else f"{subject}'s", [claim.predicate, "is", *denied], []
    return f"{' '.join([subject, *verb, *rest, claim.object])}."


def _be(participle: str) -> str:
    return "are" if participle in ("allergic", "married") else "were"

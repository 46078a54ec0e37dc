"""The check of an answer against facts. It reports; it never changes the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from synthe_core.swarm.checking.dates import dates
from synthe_core.swarm.checking.quantities import comparable, quantities
from synthe_core.swarm.checking.rules import Kind, date_conflicts, number_conflicts
from synthe_core.swarm.checking.verifier import Verifier
from synthe_core.swarm.checking.words import content, negations, stem, words
from synthe_core.swarm.extraction.patterns import sentence_claims
from synthe_core.swarm.extraction.relations import relation
from synthe_core.swarm.extraction.sentences import statements
from synthe_core.swarm.knowledge.fact import USER, Claim, Fact, key
from synthe_core.swarm.knowledge.spoken import spoken

MAX_JUDGED = 4
"""The facts with which the verifier compares one sentence: the first ones, which are the nearest."""


@dataclass(frozen=True)
class Contradiction:
    """A sentence of an answer that cannot be right if a fact is.

    kind:       what contradicts: the other object of a functional relation, a number, a unit, a date, a negation, or
                the judgement of the verifier.
    sentence:   the sentence, and `start` and `end` its place in the answer.
    stated:     what it says instead of the fact's object.
    score:      the probability of a contradiction; 1 for a rule.
    """

    fact: Fact
    kind: Kind
    sentence: str
    stated: str
    start: int
    end: int
    score: float = 1.0


def check_answer(
    answer: str, known: Sequence[Fact], near: Sequence[Fact], verifier: Verifier | None = None
) -> list[Contradiction]:
    """The contradictions of an answer, in the order of its text; one at most for each sentence and fact.

    known: facts that claims of the answer are compared with, by subject and relation. near: facts like the answer,
    which its sentences are compared with.
    """
    contradictions: list[Contradiction] = []
    read = 0
    for sentence in statements(answer):
        start, end = _place(answer, sentence, read)
        read = max(read, end)
        claimed = sentence_claims(sentence, "assistant")
        hits: dict[int, tuple[Kind, str, Fact, float]] = {}
        for claim in claimed:
            for fact in known:
                if kind := claim_conflict(fact, claim):
                    hits.setdefault(fact.id, (kind, claim.object, fact, 1.0))
        settled = {fact.id for claim in claimed for fact in known if _same_relation(fact, claim)}
        for fact in near:
            if fact.id not in settled and _mentions(sentence, fact) and (hit := _sentence_conflict(fact, sentence)):
                hits.setdefault(fact.id, (*hit, fact, 1.0))
        if verifier is not None:
            rest = [
                fact for fact in near if fact.id not in settled and fact.id not in hits and _mentions(sentence, fact)
            ]
            rest = rest[:MAX_JUDGED]
            scores = verifier.score([(spoken(fact), sentence) for fact in rest])
            for fact, score in zip(rest, scores.tolist(), strict=True):
                if score >= verifier.threshold:
                    hits[fact.id] = ("judged", sentence, fact, score)
        for kind, stated, fact, score in hits.values():
            contradictions.append(Contradiction(fact, kind, sentence, stated, start, end, score))
    return contradictions


def claim_conflict(fact: Fact, claim: Claim) -> Kind | None:
    """How a claim contradicts a fact of the same subject and relation; None if it does not."""
    if not _same_relation(fact, claim):
        return None
    kind = object_conflict(fact.object, claim.object)
    if fact.negated != claim.negated:
        return "negation" if kind is None else None
    return kind if fact.functional and not fact.negated else None


def object_conflict(known: str, stated: str) -> Kind | None:
    """How two objects of a functional relation differ; None if they can be the same thing: "Paris" and "Paris, France",
    "5 km" and "5,000 m", "May 1990" and "12 May 1990"."""
    if key(known) == key(stated):
        return None
    if dates(known) and dates(stated):
        conflicts = date_conflicts(known, stated)
        return "date" if conflicts else None
    if any(comparable(a, b) for a in quantities(known) for b in quantities(stated)):
        contradictions = number_conflicts(known, stated)
        return contradictions[0].kind if contradictions else None
    mine, others = _parts(known), _parts(stated)
    if quantities(known) and quantities(stated):
        return "unit" if {q.value for q in quantities(known)} & {q.value for q in quantities(stated)} else "relation"
    return None if mine and others and (mine <= others or others <= mine) else "relation"


def _same_relation(fact: Fact, claim: Claim) -> bool:
    return key(fact.subject) == key(claim.subject) and relation(fact.predicate) == relation(claim.predicate)


def _parts(text: str) -> set[str]:
    return {stem(word) for word in words(text)} - {"the", "a", "an", "of", "in"}


def _mentions(sentence: str, fact: Fact) -> bool:
    """Whether a sentence speaks of a fact's subject, and of its relation or object."""
    said = {stem(word) for word in words(sentence)}
    of_subject = bool({"you", "your"} & said) if key(fact.subject) == USER else _parts(fact.subject) <= said
    topic = set(content(fact.predicate))
    return of_subject and (bool(topic & said) or bool(set(content(fact.object)) & said))


def _sentence_conflict(fact: Fact, sentence: str) -> tuple[Kind, str] | None:
    """How a sentence that mentions a fact contradicts it, by its numbers, dates or negation."""
    if fact.negated:
        return None
    topic, said = set(content(fact.predicate)), {stem(word) for word in words(sentence)}
    if fact.functional and topic <= said:
        for conflict in (*date_conflicts(fact.object, sentence), *number_conflicts(fact.object, sentence)):
            return conflict.kind, conflict.stated
    parts = _parts(fact.object)
    if parts and parts <= said and topic <= said and negations(sentence) % 2:
        return "negation", sentence
    return None


def _place(answer: str, sentence: str, begin: int) -> tuple[int, int]:
    """Where a sentence stands in an answer from `begin` on, whatever its spaces are; (0, 0) if marks within it were
    removed."""
    pattern = re.compile(r"\s+".join(re.escape(word) for word in sentence.split()))
    match = pattern.search(answer, begin)
    return match.span() if match else (0, 0)

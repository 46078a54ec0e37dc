"""Conflicts between two sentences that rules see: numbers, units, dates, negation and opposite words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from synthe_core.swarm.checking.dates import dates, without_dates
from synthe_core.swarm.checking.quantities import Quantity, agree, comparable, quantities
from synthe_core.swarm.checking.words import content, negations, opposites

Kind = Literal["relation", "number", "unit", "date", "negation", "opposite", "judged"]
MIN_OVERLAP = 0.5
"""The share of the shorter sentence's content words that both need: sentences about other things do not conflict."""


@dataclass(frozen=True)
class Conflict:
    """Two parts of two sentences that cannot both be right."""

    kind: Kind
    known: str
    stated: str


def overlap(first: str, second: str) -> float:
    """The share of the content words of the sentence with fewer that the other has too, 0 to 1."""
    mine, others = set(content(first)), set(content(second))
    return len(mine & others) / min(len(mine), len(others)) if mine and others else 0.0


def conflicts(known: str, sentence: str, min_overlap: float = MIN_OVERLAP) -> list[Conflict]:
    """What of `sentence` cannot be right if `known` is. Empty for sentences with little in common."""
    if overlap(known, sentence) < min_overlap:
        return []
    result = [*date_conflicts(known, sentence), *number_conflicts(known, sentence)]
    if negations(known) % 2 != negations(sentence) % 2:
        result.append(Conflict("negation", known, sentence))
    result += [Conflict("opposite", a, b) for a, b in opposites(known, sentence)]
    return result


def date_conflicts(known: str, sentence: str) -> list[Conflict]:
    """Dates of `sentence` that agree with no date of `known`, if that has any."""
    mine, stated = dates(known), dates(sentence)
    if not mine:
        return []
    return [Conflict("date", mine[0].text, d.text) for d in stated if not any(d.agrees(each) for each in mine)]


def number_conflicts(known: str, sentence: str) -> list[Conflict]:
    """Quantities of `sentence` that agree with no comparable one of `known`, if that has any.

    The kind is `unit` where the number is the same and the unit is another.
    """
    mine, stated = quantities(without_dates(known)), quantities(without_dates(sentence))
    result = []
    for quantity in stated:
        others = [each for each in mine if comparable(each, quantity)]
        if others and not any(agree(each, quantity) for each in others):
            nearest = min(others, key=lambda each: abs(each.value - quantity.value))
            result.append(Conflict(_kind(nearest, quantity), nearest.text.strip(), quantity.text.strip()))
    return result


def _kind(first: Quantity, second: Quantity) -> Kind:
    return "unit" if _digits(first.text) == _digits(second.text) else "number"


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdigit() or character == ".")


def negation_and_overlap(known: str, sentence: str, threshold: float = 0.5) -> float:
    """The simple rule that the checks are compared with: overlap where exactly one of both is negated, else 0."""
    shared = overlap(known, sentence)
    return shared if shared >= threshold and bool(negations(known)) != bool(negations(sentence)) else 0.0

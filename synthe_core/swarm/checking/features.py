"""What a classifier reads of two sentences: overlap, conflicts that rules see, and words that take a statement back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from synthe_core.swarm.checking.dates import dates, without_dates
from synthe_core.swarm.checking.quantities import agree, comparable, quantities
from synthe_core.swarm.checking.rules import date_conflicts, number_conflicts
from synthe_core.swarm.checking.words import NEGATIONS, content, negations, opposites, stem, words

NAMES = (
    "overlap of the shorter",
    "overlap of the stated",
    "unknown words of the stated",
    "length of the known",
    "length of the stated",
    "negation in the known",
    "negation in the stated",
    "negation in one of both",
    "negation in one of both and overlap",
    "negation before the stated in the known",
    "opposite words",
    "opposite words and overlap",
    "number conflicts",
    "number conflicts and overlap",
    "numbers that agree",
    "date conflicts",
    "date conflicts and overlap",
    "unknown names",
    "unknown names and overlap",
    "doubt in the known",
    "doubt before the stated in the known",
    "question in the known",
    "exclusive words in the stated",
    "order of common words",
    "adjacent words in common",
    "absent in one of both",
)
_DOUBTS = "think thought believe believed suppose supposed if would could might may wish hope doubt"
_DOUBT = frozenset(_DOUBTS.split())
_EXCLUSIVES = "only all every always never none just entirely completely no nobody any exclusively sole"
_EXCLUSIVE = frozenset(_EXCLUSIVES.split())
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'-]+")
_ABSENT = re.compile(r"(?i)\bthere (?:is|are) no\b|\bno (?:one|man|woman|boy|girl|person|people)\b|\bnobody\b")


def pair_features(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """float64 [N, len(NAMES)] of (known, stated) sentences."""
    return np.array([_features(known, stated) for known, stated in pairs]).reshape(-1, len(NAMES))


def _features(known: str, stated: str) -> list[float]:
    mine, others = content(known), content(stated)
    common = set(mine) & set(others)
    shorter = len(common) / max(1, min(len(set(mine)), len(set(others))))
    covered = len(common) / max(1, len(set(others)))
    not_known, not_stated = negations(known) % 2, negations(stated) % 2
    one = float(not_known != not_stated)
    before, doubt_before = _before(known, set(others))
    contrary = min(3, len(opposites(known, stated)))
    numbers, days = min(3, len(number_conflicts(known, stated))), min(2, len(date_conflicts(known, stated)))
    names = _unknown_names(known, stated)
    first, second = {stem(word) for word in words(known)}, {stem(word) for word in words(stated)}
    return [
        shorter,
        covered,
        min(6, len(set(others) - set(mine))),
        np.log1p(len(mine)),
        np.log1p(len(others)),
        not_known,
        not_stated,
        one,
        one * covered,
        before,
        contrary,
        contrary * covered,
        numbers,
        numbers * covered,
        _agreeing(known, stated),
        days,
        days * covered,
        names,
        names * covered,
        float(bool(_DOUBT & set(words(known)))),
        doubt_before,
        float("?" in known),
        float(bool(_EXCLUSIVE & set(words(stated)))),
        _order(mine, others),
        _adjacent(mine, others),
        float(bool(_ABSENT.search(known)) != bool(_ABSENT.search(stated))) * float(bool(first & second)),
    ]


def _before(known: str, stated: set[str]) -> tuple[float, float]:
    """Whether the known sentence negates, and doubts, up to eight words before it says what the stated one does."""
    tokens = words(known)
    places = [place for place, word in enumerate(tokens) if stem(word) in stated]
    if not places:
        return 0.0, 0.0
    scope = tokens[max(0, places[0] - 8) : places[0]]
    scope += tokens[places[0] : places[-1]]
    return float(any(word in NEGATIONS for word in scope)), float(any(word in _DOUBT for word in scope))


def _agreeing(known: str, stated: str) -> float:
    """How many numbers and dates of the stated sentence the known one has."""
    mine, others = quantities(without_dates(known)), quantities(without_dates(stated))
    same = sum(any(comparable(a, b) and agree(a, b) for a in mine) for b in others)
    same += sum(any(a.agrees(b) for a in dates(known)) for b in dates(stated))
    return min(3.0, float(same))


def _unknown_names(known: str, stated: str) -> float:
    lower = known.lower()
    return float(min(3, sum(name.lower().removesuffix("'s") not in lower for name in set(_NAME.findall(stated)))))


def _order(mine: list[str], others: list[str]) -> float:
    """The share of neighbouring common words that stand in the other order: who did what to whom."""
    places = [mine.index(word) for word in others if word in mine]
    steps = list(pairwise(places))
    return sum(a > b for a, b in steps) / len(steps) if steps else 0.0


def _adjacent(mine: list[str], others: list[str]) -> float:
    """The share of the stated sentence's neighbouring words that are neighbours in the known one."""
    known = set(pairwise(mine))
    steps = list(pairwise(others))
    return sum(step in known for step in steps) / len(steps) if steps else 0.0

"""The words that distinguish a cluster of requests from all others, and a specialist's name of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from synthe_core.swarm.features import SAMPLES
from synthe_core.swarm.router.bm25 import words
from synthe_core.swarm.spawning.requests import RoutedRequest
from synthe_core.swarm.spec import name_fault

MAX_TERMS, MIN_LETTERS, MIN_REQUESTS, MIN_SHARE = 6, 3, 3, 0.1
"""Of a term: its letters, and the requests that it must be in, also as a share of the cluster's."""
_FUNCTION_WORDS = """
the and for are was were with that this from have has had can could would should will how what when where which who why
does did not you your into about there their they them its our his her she him but all any some many much more most than
then also just only very write give tell show explain describe please make need want use using
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that name no subject."""
MIN_USERS = 2
"""A term of one user alone may be personal: where there are several, it does not count."""


def distinctive_terms(inside: Sequence[RoutedRequest], outside: Sequence[RoutedRequest]) -> list[str]:
    """Words by p log(p / q), the most telling first: p is the share of the cluster's requests that have the word, q
    that of all other requests and of general texts."""
    own, users = Counter[str](), defaultdict[str, set[str]](set)
    for request in inside:
        for word in set(words(request.text)):
            own[word] += 1
            users[word].add(request.user)
    others = Counter(word for text in (*SAMPLES, *(each.text for each in outside)) for word in set(words(text)))
    total = len(SAMPLES) + len(outside)
    several = len({each.user for each in inside}) >= MIN_USERS
    scores = {}
    for word, count in own.items():
        share = count / len(inside)
        enough = count >= max(MIN_REQUESTS, MIN_SHARE * len(inside)) and (not several or len(users[word]) >= MIN_USERS)
        if enough and len(word) >= MIN_LETTERS and word.isalpha() and word not in FUNCTION_WORDS:
            scores[word] = share * math.log(share / ((others[word] + 0.5) / (total + 1)))
    ordered = sorted(scores, key=lambda word: (-scores[word], word))
    return [word for word in ordered if scores[word] > 0][:MAX_TERMS]


def new_name(terms: Sequence[str], taken: Collection[str]) -> str:
    """The first term that can be a name and is free; a number where none is."""
    free = (term for term in terms if name_fault(term) is None and term not in taken)
    numbered = (name for number in range(1, len(taken) + 2) if (name := f"specialist-{number}") not in taken)
    return next(free, None) or next(numbered)

"""How well the words of a request match those of each specialist: BM25 (Robertson & Zaragoza 2009)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

K1, B = 1.2, 0.75
WORD = re.compile(r"[^\W_]+")
MAX_WORDS = 2000
"""Words of a text that count."""


def words(text: str) -> list[str]:
    """The words of a text in lower case, plurals in s as their singular."""
    every = WORD.findall(text.lower())[:MAX_WORDS]
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in every]


class BM25:
    """A document for each name, which grows."""

    def __init__(self, names: Iterable[str]) -> None:
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        self._holders: Counter[str] = Counter()  # documents that a word is in
        self._sizes: Counter[str] = Counter()

    def add(self, name: str, text: str) -> None:
        """Adds the words of a text to a document."""
        counts = self._counts[name]
        for word in words(text):
            if not counts[word]:
                self._holders[word] += 1
            counts[word] += 1
            self._sizes[name] += 1

    def scores(self, text: str) -> dict[str, float]:
        """The score of every document, 0 without a common word."""
        query = Counter(words(text))
        mean = max(1.0, sum(self._sizes.values()) / max(1, len(self._counts)))
        return {name: sum(self._score(word, name, mean) for word in query) for name in self._counts}

    def shares(self, text: str, saturation: float) -> dict[str, float]:
        """Each document's share of the scores, times S / (S + saturation) of their sum S: a chance word says little.
        0 for all without a common word."""
        scores = self.scores(text)
        total = sum(scores.values())
        return {name: score / (total + saturation) if total else 0.0 for name, score in scores.items()}

    def matches(self, text: str, name: str) -> list[str]:
        """The words that a text and a document have in common, the rarest first."""
        common = {word for word in words(text) if self._counts[name][word]}
        return sorted(common, key=lambda word: (self._holders[word], word))

    def _score(self, word: str, name: str, mean: float) -> float:
        count = self._counts[name].get(word, 0)
        if not count:
            return 0.0
        holders = self._holders[word]
        rarity = math.log(1 + (len(self._counts) - holders + 0.5) / (holders + 0.5))
        return rarity * count * (K1 + 1) / (count + K1 * (1 - B + B * self._sizes[name] / mean))

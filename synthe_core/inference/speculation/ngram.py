"""Drafts from the text itself: what followed the last tokens where they stood before."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Many
from typing import NamedTuple

from synthe_core.inference.speculation.proposer import DraftRequest

LONGEST, SHORTEST = 8, 2
"""Tokens of the end of the text that are looked up: at most, and at least."""
MOST_PLACES = 64
"""Places where the last two tokens stood that are compared, the newest first."""


class Match(NamedTuple):
    """The last `length` tokens of the text stood before token number `place` too; length 0: there is no such place."""

    length: int
    place: int


class NgramIndex:
    """Where each pair of tokens of a growing text ended, apart from the end of the text."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._last: dict[tuple[int, int], int] = {}
        self._before: list[int] = []  # of each place that a pair ends before, the one before it of the same pair; -1
        self._match: Match | None = None  # of the text as it is

    def extend(self, tokens: Many[int]) -> None:
        """Adds tokens to the text."""
        if tokens:
            self._match = None
        for token in tokens:
            place, before = len(self._tokens), -1
            if place >= SHORTEST:  # the pair that ends here is followed by `token`
                pair = self._tokens[-2], self._tokens[-1]
                before = self._last.get(pair, -1)
                self._last[pair] = place
            self._before.append(before)
            self._tokens.append(token)

    def __len__(self) -> int:
        return len(self._tokens)

    def match(self) -> Match:
        """The longest run that ends the text and stood in it before; of several places the newest."""
        if self._match is None:
            self._match = self._search()
        return self._match

    def _search(self) -> Match:
        text, best = self._tokens, Match(0, 0)
        if len(text) < SHORTEST:
            return best
        place = self._last.get((text[-2], text[-1]), -1)
        for _ in range(MOST_PLACES):
            if place < 0 or best.length == LONGEST:
                break
            length = SHORTEST
            while length < min(LONGEST, place) and text[place - length - 1] == text[-length - 1]:
                length += 1
            if length > best.length:
                best = Match(length, place)
            place = self._before[place]
        return best

    def continuation(self, most: int) -> list[int]:
        """What followed the match. Where that reaches the end of the text, it repeats."""
        length, place = self.match()
        period = len(self._tokens) - place
        return [self._tokens[place + i % period] for i in range(most)] if length else []


class NgramProposer:
    """Looks the end of the text up in the text (Saxena 2023, prompt lookup decoding)."""

    name = "ngram"
    is_free = True

    def __init__(self) -> None:
        self._indices: dict[Hashable, NgramIndex] = {}

    def matched(self, request: DraftRequest) -> int:
        return self._index(request).match().length

    def propose(self, requests: Many[DraftRequest]) -> list[list[int]]:
        return [self._index(each).continuation(each.most) for each in requests]

    def forget(self, key: Hashable) -> None:
        self._indices.pop(key, None)

    def _index(self, request: DraftRequest) -> NgramIndex:
        """That of the text, with what was added to it."""
        index = self._indices.setdefault(request.key, NgramIndex())
        if not len(index):
            index.extend(request.prompt)
        index.extend(request.output[len(index) - len(request.prompt) :])
        return index

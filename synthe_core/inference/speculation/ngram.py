"""Drafts from the text itself: what followed the last tokens where they stood before."""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Many

from synthe_core.inference.speculation.proposer import DraftRequest

LONGEST, SHORTEST = 4, 2
"""Tokens of the end of the text that are looked up: so many, then fewer."""


class NgramIndex:
    """Where each run of 2 to 4 tokens of a growing text ended last, apart from the end of the text."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._ends: list[dict[tuple[int, ...], int]] = [{} for _ in range(LONGEST + 1)]

    def extend(self, tokens: Many[int]) -> None:
        """Adds tokens to the text."""
        for token in tokens:
            end = len(self._tokens)  # the runs that end here are followed by `token`
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[length][tuple(self._tokens[end - length :])] = end
            self._tokens.append(token)

    def __len__(self) -> int:
        return len(self._tokens)

    def continuation(self, most: int) -> list[int]:
        """What followed the last occurrence of the longest run that ends the text. Where that reaches the end of the
        text, it repeats."""
        for length in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            place = self._ends[length].get(tuple(self._tokens[-length:]))
            if place is not None:
                period = len(self._tokens) - place
                return [self._tokens[place + i % period] for i in range(most)]
        return []


class NgramProposer:
    """Looks the end of the text up in the text (Saxena 2023, prompt lookup decoding)."""

    name = "ngram"
    is_free = True

    def __init__(self) -> None:
        self._indices: dict[Hashable, NgramIndex] = {}

    def propose(self, requests: Many[DraftRequest]) -> list[list[int]]:
        drafts = []
        for request in requests:
            index = self._indices.setdefault(request.key, NgramIndex())
            if not len(index):
                index.extend(request.prompt)
            index.extend(request.output[len(index) - len(request.prompt) :])
            drafts.append(index.continuation(request.most))
        return drafts

    def forget(self, key: Hashable) -> None:
        self._indices.pop(key, None)

"""The passages that a message is answered with."""

from __future__ import annotations

from collections.abc import Callable

from synthe_core.retrieval.prompt import fitting
from synthe_core.retrieval.search import Searcher, SearchResult
from synthe_core.retrieval.words import content_words

PASSAGES = 4
"""Passages of a message at most."""
MAX_TOKENS = 1024
"""Tokens of them, at most."""
SHARE = 4
"""Of a model's context, one part in so many is for the passages of one message."""
FEW_WORDS = 3
"""A message with fewer words than these is about the one before it, too: "and for children?"."""


class Retriever:
    """Searches an index for each message. max_tokens: of the passages of one message, by `count_tokens`."""

    def __init__(self, searcher: Searcher, max_tokens: int, count_tokens: Callable[[str], int]) -> None:
        self.searcher, self.max_tokens, self._count_tokens = searcher, max_tokens, count_tokens

    def retrieve(self, message: str, previous: str = "") -> list[SearchResult]:
        """The passages that belong to `message`, the best first; empty where none shares a word with it.

        previous: the message before it.
        """
        query = f"{message}\n{previous}" if len(content_words(message)) < FEW_WORDS else message
        return fitting(self.searcher.search(query, PASSAGES), self.max_tokens, self._count_tokens)


def token_budget(context: int | None) -> int:
    """Tokens for the passages of one message. context: of the model; None for any number."""
    return MAX_TOKENS if context is None else min(MAX_TOKENS, context // SHARE)

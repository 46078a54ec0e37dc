"""The words of a query, as SQLite's full-text index compares them."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_WORDS = 64
"""Words of a query that are looked for."""
_WORD = re.compile(r"[^\W_]+")
_STOPS = (
    "a about am an and are as at be been but by can could did do does for from had has have how i if in is it its "
    "may me might my of on or our please shall she should so some such tell than that the their them then there these "
    "they this those to us was we were what when where which who whom whose why will with would you your"
)
STOP_WORDS = frozenset(_STOPS.split())


def content_words(text: str) -> list[str]:
    """The different words of a text without stop words, in lower case, at most `MAX_WORDS`."""
    return [word for word in _words(text) if word not in STOP_WORDS][:MAX_WORDS]


def query_words(text: str) -> list[str]:
    """`content_words`, or all words of a text that has stop words only, such as "who are you"."""
    return content_words(text) or _words(text)[:MAX_WORDS]


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(_WORD.findall(text.casefold())))


def match_any(words: Iterable[str]) -> str:
    """An FTS5 query for rows with one of the words at least. Quoted, a word is never an operator."""
    return " OR ".join(f'"{word}"' for word in words)

"""Whether one text stands in another, by their words."""

from __future__ import annotations

import re
import unicodedata

WORD = re.compile(r"\w+(?:[.,]\w+)*")
ARTICLES = frozenset({"a", "an", "the"})
GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")
"""A number with commas between its thousands."""


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation, accents, English articles and the commas in numbers."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    every = (word.replace(",", "") if GROUPED.fullmatch(word) else word for word in WORD.findall(plain))
    return [word for word in every if word not in ARTICLES]


def contains(text: str, part: str) -> bool:
    """Whether the words of `part`, one or more, stand in `text` one after another."""
    all_words, wanted = words(text), words(part)
    return bool(wanted) and any(
        all_words[at : at + len(wanted)] == wanted for at in range(len(all_words) - len(wanted) + 1)
    )


def share_in(text: str, part: str) -> float:
    """The share of the words of `part` that stand anywhere in `text`; 0 for none."""
    known, wanted = set(words(text)), words(part)
    return sum(word in known for word in wanted) / len(wanted) if wanted else 0.0


def numbers(text: str) -> set[str]:
    """The words of a text with a digit in them."""
    return {word for word in words(text) if any(letter.isdigit() for letter in word)}

"""What a search of words returns."""

from __future__ import annotations

from typing import NamedTuple


class Hit(NamedTuple):
    """A fact with one of the words that are looked for. word: which one. weight: 2 in the subject, 1 elsewhere. size:
    characters of the fact."""

    word: int
    fact: int
    weight: int
    size: int

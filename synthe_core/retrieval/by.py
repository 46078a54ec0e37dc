"""How passages are searched for; without torch or numpy, for the command line's help."""

from __future__ import annotations

from enum import StrEnum


class By(StrEnum):
    """words: BM25. meaning: the cosine of embeddings. both: the two fused."""

    words = "words"
    meaning = "meaning"
    both = "both"

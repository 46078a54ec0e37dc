"""A fact, and when two of them say the same."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

USER = "user"
"""The subject of what a person says of themself."""

_ARTICLE = re.compile(r"^(?:the|a|an|my|your)\s+")
_EDGES = " \t\n\"'`.,;:!?()[]{}“”‘’"


class Source(StrEnum):
    """Where a fact comes from.

    OPERATOR: who runs the swarm wrote it. USER: a person said it of themself. STATEMENT: a person said it of the world.
    MODEL: a model read it out of a conversation. IMPORTED: a file brought it.
    """

    OPERATOR = "operator"
    USER = "user"
    STATEMENT = "statement"
    MODEL = "model"
    IMPORTED = "imported"


@dataclass(frozen=True)
class Claim:
    """A statement: subject, predicate and object, or that this does not hold.

    functional: whether a subject has one such object at a time, so that another one contradicts it.
    """

    subject: str
    predicate: str
    object: str
    negated: bool = False
    functional: bool = False


@dataclass(frozen=True)
class Fact(Claim):
    """A claim in the database.

    id:            its number, by which it is cited.
    user:          whose it is; "" is everybody's.
    confidence:    how likely it is right, 0 to 1.
    source:        where it comes from.
    trusted:       whether it enters prompts and checks.
    message:       the message that said it, if one did.
    valid_from:    since when it holds, and `valid_until` until when; None: it holds. Seconds since 1970.
    superseded_by: the fact that took its place.
    last_seen:     when it was last said, and `times_seen` how often.
    """

    id: int = 0
    user: str = ""
    confidence: float = 1.0
    source: Source = Source.OPERATOR
    trusted: bool = False
    message: int | None = None
    valid_from: float = 0.0
    valid_until: float | None = None
    superseded_by: int | None = None
    last_seen: float = 0.0
    times_seen: int = 1

    @property
    def is_current(self) -> bool:
        return self.valid_until is None


def key(text: str) -> str:
    """What two spellings of one thing have in common: no case, article, or spaces and punctuation at the ends."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().replace("_", " ").split()).strip(_EDGES)
    return _ARTICLE.sub("", plain)

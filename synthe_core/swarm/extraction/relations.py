"""Relations: the name under which their spellings are stored, and whether a subject has one object at a time."""

from __future__ import annotations

import re

from synthe_core.swarm.knowledge.fact import key

FUNCTIONAL = frozenset(
    {
        "name", "age", "lives in", "works at", "occupation", "born on", "born in", "died on", "died in", "birthday",
        "married to", "native language", "nationality", "home town", "time zone", "capital", "population", "area",
        "height", "length", "depth", "weight", "mass", "speed", "temperature", "boiling point", "melting point",
        "distance", "duration", "price", "cost", "deadline", "due date", "start date", "end date", "founded in",
        "founder", "ceo", "president", "prime minister", "king", "queen", "mayor", "director", "author", "written by",
        "directed by", "located in", "headquarters", "currency", "official language", "chemical symbol",
        "atomic number", "release date", "released in", "version", "port", "address", "phone number", "size", "colour",
        "boss", "manager", "wife", "husband", "spouse", "mother", "father", "doctor", "diet", "blood type",
    }
)  # fmt: skip
"""Relations of which a subject has one object at a time. Any other may have several."""

_SPELLINGS = {
    "lives in": "live in|living in|reside in|resides in|based in|moved to|residence|home|city",
    "works at": "work at|work for|works for|working at|working for|employed by|employer|joined|job at",
    "occupation": "work as|works as|working as|job|profession|is a|am a",
    "age": "years old|aged",
    "name": "called|named|full name|first name",
    "born on": "birthdate|date of birth|birth date",
    "born in": "birth year|year of birth|birthplace|place of birth",
    "married to": "is married to",
    "colour": "color",
    "ceo": "chief executive|chief executive officer",
    "founded in": "established in|founded|founding year",
    "located in": "location|situated in|is in",
    "written by": "was written by",
    "likes": "like|love|loves|enjoy|enjoys|adore|adores|fond of",
    "prefers": "prefer|preference",
    "speaks": "speak|language|languages",
    "uses": "use",
    "allergic to": "is allergic to|allergy|allergies",
}
_CANONICAL = {other: name for name, others in _SPELLINGS.items() for other in others.split("|")}
_VERB = re.compile(r"^(?:is|are|was|were|am) (?=\w)")
_FAVOURITE = re.compile(r"^favou?rite (.+)$")


def relation(predicate: str) -> str:
    """The name under which a relation is stored: `works at` for "employed by"."""
    plain = _VERB.sub("", key(predicate))
    plain = _CANONICAL.get(key(predicate), _CANONICAL.get(plain, plain))
    match = _FAVOURITE.match(plain)
    return f"favourite {match[1]}" if match else plain


def is_functional(predicate: str) -> bool:
    """Whether a subject has one such object at a time."""
    name = relation(predicate)
    return name in FUNCTIONAL or name.startswith("favourite ") or name.endswith((" name", " date", " number"))

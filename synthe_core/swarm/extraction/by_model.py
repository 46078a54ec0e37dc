"""Claims that a model reads out of a message, as JSON of a schema. They are trusted only after a review."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synthe_core.errors import InputError, WorkError
from synthe_core.swarm.extraction.relations import is_functional, relation
from synthe_core.swarm.extraction.sentences import sentences
from synthe_core.swarm.json_writer import JsonWriter
from synthe_core.swarm.knowledge.conversations import Message
from synthe_core.swarm.knowledge.fact import USER, Claim, Source, key
from synthe_core.swarm.knowledge.facts import Added
from synthe_core.swarm.knowledge.knowledge import Knowledge

MAX_CLAIMS = 8  # of one message
MAX_PART = 80  # characters of a subject, relation or object
MAX_MESSAGE = 2000  # characters of a message that are read
_PART = {"type": "string", "minLength": 1, "maxLength": MAX_PART}
SCHEMA: dict[str, Any] = {
    "type": "array",
    "maxItems": MAX_CLAIMS,
    "items": {
        "type": "object",
        "properties": {"subject": _PART, "relation": _PART, "object": _PART},
        "required": ["subject", "relation", "object"],
        "additionalProperties": False,
    },
}
_QUESTION = """\
List the facts that this message states, as JSON. A fact has a subject, a relation and an object. The person who wrote \
the message is the subject "user". If the message states no fact, write [].

Message: I live in Paris and my sister Eva is a nurse.
[{{"subject": "user", "relation": "lives in", "object": "Paris"}}, \
{{"subject": "Eva", "relation": "occupation", "object": "nurse"}}]

Message: {message}"""


def model_claims(text: str, write: JsonWriter) -> list[Claim]:
    """The claims that a model reads in a text.

    What the model made up is left out: every word of an object must be in the text. WorkError if it wrote no JSON.
    """
    plain = " ".join(sentences(text))[:MAX_MESSAGE]
    if not plain:
        return []
    claims = []
    for item in write(_QUESTION.format(message=plain), SCHEMA):
        subject = USER if key(item["subject"]) in ("user", "i", "me", "the user") else item["subject"].strip()
        name = relation(item["relation"])
        claim = Claim(subject, name, item["object"].strip(), functional=is_functional(name))
        parts = (claim.object,) if subject == USER else (claim.object, subject)
        if all(key(part) and key(part) in key(plain) for part in parts) and key(name):
            claims.append(claim)
    return claims


def read_messages(knowledge: Knowledge, write: JsonWriter, limit: int = 16) -> list[Added]:
    """Reads the oldest unread messages of users for facts: the work of a background thread or process.

    A message from which the model writes no JSON, or that is too long for it, counts as read. Returns what became of
    the claims. Busy if the engine has no room.
    """
    return [added for message in knowledge.conversations.unread(limit) for added in _read(knowledge, write, message)]


def _read(knowledge: Knowledge, write: JsonWriter, message: Message) -> Sequence[Added]:
    try:
        claims = model_claims(message.text, write)
    except (WorkError, InputError):
        claims = []
    with knowledge.store.transaction():
        added = [knowledge.learn(message.user, claim, Source.MODEL, message) for claim in claims]
        knowledge.conversations.mark_read(message.id)
    return added

"""Conversations: what a user and the swarm said, in order. Texts are redacted before they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, select

from synthe_core.errors import InputError
from synthe_core.swarm.knowledge.tables import SCHEMA, conversations, messages
from synthe_core.swarm.redaction import redact
from synthe_core.swarm.store import LimitReached, Store, insert

ROLES = ("system", "user", "assistant", "tool")
MAX_TEXT = 100_000  # characters of a message
MAX_NAME = 200  # characters of a conversation's name
MAX_MESSAGES = 1_000_000  # of one user


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. read: whether a model has looked for facts in it."""

    id: int
    user: str
    conversation: str
    role: str
    text: str
    time: float
    read: bool


class Conversations:
    """The conversations of all users. Two users may have one of the same name; neither sees the other's."""

    def __init__(self, store: Store, max_messages: int = MAX_MESSAGES) -> None:
        self.store, self.max_messages = store, max_messages
        store.prepare(SCHEMA)

    def record(self, user: str, conversation: str, role: str, text: str) -> Message:
        """Adds a turn, redacted. InputError for an unknown role or no name, LimitReached beyond the limit of messages.

        Of a longer text the first MAX_TEXT characters are stored.
        """
        if role not in ROLES:
            raise InputError(f"unknown role '{role[:50]}'", f"one of {', '.join(ROLES)}")
        check_name(conversation)
        text, now = redact(text)[:MAX_TEXT], self.store.now()
        with self.store.transaction() as connection:
            of_user = select(func.count()).select_from(messages).where(messages.c.user == user)
            if (connection.scalar(of_user) or 0) >= self.max_messages:
                hint = "delete some: synthe swarm knowledge forget SWARM"
                raise LimitReached(f"there are {self.max_messages} messages of one user already", hint)
            begun = insert(connection, conversations).values(user=user, id=conversation, started=now, last_turn=now)
            connection.execute(begun.on_conflict_do_update(index_elements=["user", "id"], set_={"last_turn": now}))
            turn = messages.insert().values(user=user, conversation=conversation, role=role, text=text, time=now)
            key = connection.execute(turn).inserted_primary_key
            assert key is not None
            return Message(int(key[0]), user, conversation, role, text, now, read=False)

    def turns(self, user: str, conversation: str) -> list[Message]:
        """The messages of a conversation in order."""
        condition = (messages.c.user == user) & (messages.c.conversation == conversation)
        with self.store.read() as connection:
            query = messages.select().where(condition).order_by(messages.c.id)
            return [message_of(row) for row in connection.execute(query)]

    def names(self, user: str) -> list[str]:
        """A user's conversations, the latest first."""
        query = select(conversations.c.id).where(conversations.c.user == user)
        with self.store.read() as connection:
            return [str(row[0]) for row in connection.execute(query.order_by(conversations.c.last_turn.desc()))]

    def unread(self, limit: int) -> list[Message]:
        """The oldest messages of users that no model has looked for facts in."""
        query = messages.select().where(messages.c.read_at.is_(None) & (messages.c.role == "user"))
        with self.store.read() as connection:
            return [message_of(row) for row in connection.execute(query.order_by(messages.c.id).limit(limit))]

    def mark_read(self, message: int) -> None:
        """Notes that a message needs no second look."""
        with self.store.transaction() as connection:
            connection.execute(messages.update().where(messages.c.id == message).values(read_at=self.store.now()))


def check_name(conversation: str) -> None:
    """InputError for what cannot be the name of a conversation."""
    if not 1 <= len(conversation) <= MAX_NAME:
        raise InputError(f"the name of a conversation has 1 to {MAX_NAME} characters, not {len(conversation)}")


def message_of(row: Row[Any]) -> Message:
    """A row of the table as a message."""
    values = dict(row._mapping)
    read = values.pop("read_at") is not None
    return Message(**values, read=read)

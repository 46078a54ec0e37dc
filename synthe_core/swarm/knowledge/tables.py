"""The tables of knowledge. Every row belongs to a user; "" is everybody's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    func,
)

from synthe_core.swarm.knowledge import word_index
from synthe_core.swarm.store import Schema, metadata

conversations = Table(
    "conversations",
    metadata,
    Column("user", String, primary_key=True),
    Column("id", String, primary_key=True),
    Column("started", Float, nullable=False),
    Column("last_turn", Float, nullable=False),
)

messages = Table(
    "messages",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user", String, nullable=False),
    Column("conversation", String, nullable=False),
    Column("role", String, nullable=False),
    Column("text", Text, nullable=False),
    Column("time", Float, nullable=False),
    Column("read_at", Float),  # when the model has read it for facts; NULL: not yet
    ForeignKeyConstraint(["user", "conversation"], ["conversations.user", "conversations.id"], ondelete="CASCADE"),
    Index("messages_of_conversation", "user", "conversation"),
    sqlite_autoincrement=True,
)
_unread = messages.c.read_at.is_(None)
Index("messages_to_read", messages.c.id, sqlite_where=_unread, postgresql_where=_unread)

facts = Table(
    "facts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user", String, nullable=False),
    Column("subject", Text, nullable=False),
    Column("predicate", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("negated", Boolean, nullable=False),
    Column("functional", Boolean, nullable=False),
    Column("subject_key", Text, nullable=False),
    Column("predicate_key", Text, nullable=False),
    Column("object_key", Text, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("source", String, nullable=False),
    Column("trusted", Boolean, nullable=False),
    Column("message", Integer, ForeignKey("messages.id", ondelete="SET NULL")),
    Column("valid_from", Float, nullable=False),
    Column("valid_until", Float),
    Column("superseded_by", Integer, ForeignKey("facts.id", ondelete="SET NULL")),
    Column("last_seen", Float, nullable=False),
    Column("times_seen", Integer, nullable=False),
    sqlite_autoincrement=True,  # a number that was cited is never given to another fact
)
current = facts.c.valid_until.is_(None)
_only = current & facts.c.functional & ~facts.c.negated
_relation = (facts.c.subject_key, facts.c.predicate_key)


def _said_once(dialect: str, digest: Callable[[Any], Any]) -> None:
    """Two facts that hold cannot say the same, nor two of a functional relation something else."""
    user, relation, object = facts.c.user, [digest(key) for key in _relation], digest(facts.c.object_key)
    for name, columns, where in (
        ("facts_said_once", [user, *relation, object, facts.c.trusted], current),
        ("facts_functional", [user, *relation, facts.c.trusted], _only),
    ):
        Index(name, *columns, unique=True, sqlite_where=where, postgresql_where=where).ddl_if(dialect=dialect)


_said_once("sqlite", lambda key: key)
_said_once("postgresql", func.md5)  # its indexes have no room for long texts
Index("facts_of_message", facts.c.message)
Index("facts_superseded_by", facts.c.superseded_by)
_facts_by_user = Index("facts_by_user", facts.c.user, facts.c.last_seen)

vectors = Table(
    "fact_vectors",
    metadata,
    Column("fact", Integer, ForeignKey("facts.id", ondelete="CASCADE"), primary_key=True),
    Column("embedder", String, primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # float32, little endian
)


def _create(connection: Connection) -> None:
    metadata.create_all(connection, [conversations, messages, facts, vectors])
    word_index.create(connection)


def _own_words(connection: Connection) -> None:
    """A search reads the words of one user's facts alone, and a user's facts are counted by an index."""
    word_index.create_again(connection)
    _facts_by_user.create(connection, checkfirst=True)


SCHEMA = Schema("knowledge", (_create, _own_words))


def number_of(connection: Connection, table: Table) -> int:
    """How many rows a table has."""
    return int(connection.scalar(func.count().select().select_from(table)) or 0)

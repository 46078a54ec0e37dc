"""The tables of knowledge. Every row belongs to a user; "" is everybody's."""

from __future__ import annotations

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
    text,
)

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
Index("messages_to_read", messages.c.id, sqlite_where=messages.c.read_at.is_(None))

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
_relation = (facts.c.user, facts.c.subject_key, facts.c.predicate_key)
Index("facts_said_once", *_relation, facts.c.object_key, facts.c.trusted, unique=True, sqlite_where=current)
Index(
    "facts_functional",
    *_relation,
    facts.c.trusted,
    unique=True,
    sqlite_where=current & facts.c.functional & ~facts.c.negated,
)
Index("facts_of_message", facts.c.message)
Index("facts_superseded_by", facts.c.superseded_by)

vectors = Table(
    "fact_vectors",
    metadata,
    Column("fact", Integer, ForeignKey("facts.id", ondelete="CASCADE"), primary_key=True),
    Column("embedder", String, primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # float32, little endian
)

_COLUMNS = "subject, predicate, object"
_INDEX = (
    f"CREATE VIRTUAL TABLE facts_text USING fts5({_COLUMNS}, content='facts', content_rowid='id',"
    " tokenize='porter unicode61 remove_diacritics 2')",
    f"CREATE TRIGGER facts_text_insert AFTER INSERT ON facts BEGIN"
    f" INSERT INTO facts_text(rowid, {_COLUMNS}) VALUES (new.id, new.subject, new.predicate, new.object); END",
    f"CREATE TRIGGER facts_text_delete AFTER DELETE ON facts BEGIN"
    f" INSERT INTO facts_text(facts_text, rowid, {_COLUMNS})"
    f" VALUES ('delete', old.id, old.subject, old.predicate, old.object); END",
)
"""The text of a fact never changes after it was written, so there is no trigger of updates."""


def _create(connection: Connection) -> None:
    metadata.create_all(connection, [conversations, messages, facts, vectors])
    for statement in _INDEX:
        connection.execute(text(statement))


SCHEMA = Schema("knowledge", (_create,))


def erase_index(connection: Connection) -> None:
    """Writes the index of words anew: the words of deleted facts stay in the old one until then."""
    connection.execute(text("INSERT INTO facts_text(facts_text) VALUES ('rebuild')"))


def number_of(connection: Connection, table: Table) -> int:
    """How many rows a table has."""
    return int(connection.scalar(func.count().select().select_from(table)) or 0)

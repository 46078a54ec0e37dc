"""The tables of feedback."""

from __future__ import annotations

from sqlalchemy import Column, Connection, Float, Index, Integer, String, Table, Text, UniqueConstraint

from synthe_core.swarm.store import Schema, metadata

ratings = Table(
    "ratings",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("answer", String, nullable=False),
    Column("user", String, nullable=False),
    Column("score", Float, nullable=False),
    Column("signal", String, nullable=False),
    Column("time", Float, nullable=False),
    UniqueConstraint("answer", "user"),
)

pairs = Table(
    "pairs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user", String, nullable=False),
    Column("answer", String),
    Column("specialist", String, nullable=False),
    Column("source", String, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("chosen", Text, nullable=False),
    Column("rejected", Text, nullable=False),
    Column("state", String, nullable=False),
    Column("digest", String, nullable=False, unique=True),
    Column("conflicts_with", Integer),
    Column("reviewer", String),
    Column("created", Float, nullable=False),
    Column("reviewed", Float),
    Index("pairs_by_state", "state", "specialist"),
    Index("pairs_by_user", "user"),
    sqlite_autoincrement=True,
)


def _create(connection: Connection) -> None:
    metadata.create_all(connection, [ratings, pairs])


SCHEMA = Schema("feedback", (_create,))

"""What the router learns from, in a swarm's database: embeddings of rated requests, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    Row,
    String,
    Table,
    delete,
    select,
)

from synthe_core.swarm.redaction import redact
from synthe_core.swarm.store import Schema, Store, metadata

MAX_TEXT = 2000
"""Characters of a request whose words count."""

observations = Table(
    "observations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("base", String, nullable=False),
    Column("answer", String),
    Column("user", String, nullable=False),
    Column("text", String, nullable=False),
    Column("embedding", LargeBinary, nullable=False),
    Column("shares", JSON, nullable=False),
    Column("outcomes", JSON, nullable=False),
    Column("rated", Boolean, nullable=False),
    Column("created", Float, nullable=False),
    Index("observations_by_base", "base", "rated", "id"),
    Index("observations_by_answer", "answer"),
)
statistics = Table(
    "embedding_statistics",
    metadata,
    Column("base", String, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("mean", LargeBinary, nullable=False),
    Column("squares", LargeBinary, nullable=False),
)


def _create(connection: Connection) -> None:
    metadata.create_all(connection, [observations, statistics])


SCHEMA = Schema("router", (_create,))


@dataclass(frozen=True)
class Observation:
    """A request that was routed.

    embedding: float32 [D], as the base gives it. shares: each specialist's share of matching words when the request was
    routed. outcomes: the success, 0 to 1, of each specialist of which it is known; empty until it is rated.
    """

    text: str
    embedding: np.ndarray
    shares: Mapping[str, float]
    outcomes: Mapping[str, float]


class Observations:
    """The observations made with one base, whose digest is `base`: embeddings of two bases are not comparable."""

    def __init__(self, store: Store, base: str) -> None:
        self._store, self._base = store, base
        store.prepare(SCHEMA)

    def add(self, observation: Observation, user: str, answer: str | None = None) -> None:
        """Records an observation, redacted, of the answer of that id where it is of one."""
        values = {
            "base": self._base,
            "answer": answer,
            "user": user,
            "text": redact(observation.text[:MAX_TEXT]),
            "embedding": observation.embedding.astype(np.float16).tobytes(),
            "shares": dict(observation.shares),
            "outcomes": dict(observation.outcomes),
            "rated": bool(observation.outcomes),
            "created": self._store.now(),
        }
        with self._store.transaction() as connection:
            connection.execute(observations.insert().values(**values))

    def newest(self, limit: int) -> list[Observation]:
        """The newest rated ones, oldest first."""
        query = select(observations).where(observations.c.base == self._base, observations.c.rated)
        query = query.order_by(observations.c.id.desc()).limit(limit)
        with self._store.read() as connection:
            rows = connection.execute(query).all()
        return [_observation(row) for row in reversed(rows)]

    def statistics(self) -> tuple[int, np.ndarray, np.ndarray] | None:
        """Number, mean and squared deviations of the embeddings seen so far; None at the beginning."""
        with self._store.read() as connection:
            row = connection.execute(select(statistics).where(statistics.c.base == self._base)).first()
        return None if row is None else (row.number, np.frombuffer(row.mean), np.frombuffer(row.squares))

    def save_statistics(self, count: int, mean: np.ndarray, squares: np.ndarray) -> None:
        """Replaces them."""
        values = {"base": self._base, "number": count, "mean": mean.tobytes(), "squares": squares.tobytes()}
        with self._store.transaction() as connection:
            connection.execute(delete(statistics).where(statistics.c.base == self._base))
            connection.execute(statistics.insert().values(**values))


def rate(store: Store, answer: str, outcomes: Mapping[str, float]) -> Observation | None:
    """Records what came of an answer, in place of an earlier rating; returns the observation. None if the answer was
    not routed, but addressed to a specialist."""
    store.prepare(SCHEMA)
    own = observations.c.answer == answer
    with store.transaction() as connection:
        connection.execute(observations.update().where(own).values(outcomes=dict(outcomes), rated=bool(outcomes)))
        row = connection.execute(select(observations).where(own)).first()
    return None if row is None else _observation(row)


def _observation(row: Row[Any]) -> Observation:
    embedding = np.frombuffer(row.embedding, np.float16).astype(np.float32)
    return Observation(row.text, embedding, row.shares, row.outcomes)

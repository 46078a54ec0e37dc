"""Vectors of facts, stored by what made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, literal, select

from synthe_core.swarm.knowledge.fact import Fact
from synthe_core.swarm.knowledge.spoken import spoken
from synthe_core.swarm.knowledge.tables import facts as table
from synthe_core.swarm.knowledge.tables import vectors
from synthe_core.swarm.store import Store, insert


@dataclass(frozen=True)
class Embedder:
    """Turns texts into vectors.

    name:  what identifies the vectors, such as the digest of the model's weights: those of another are not compared.
    embed: float32 [N, D], a row for each text.
    """

    name: str
    embed: Callable[[Sequence[str]], np.ndarray]


MIN_FACTS = 8
"""Of fewer facts the deviation of a dimension says nothing, and only the mean is taken away."""


def similarities(store: Store, embed: Embedder, facts: Sequence[Fact], text: str) -> np.ndarray:
    """float [N]: the cosine of a text with each fact, both standardised by mean and deviation of the facts.

    A few dimensions of a language model's embedding are large for every text; unstandardised, all texts are alike.
    Vectors that are not stored yet are made and stored.
    """
    if not facts:
        return np.zeros(0)
    known = _stored(store, embed.name, [fact.id for fact in facts])
    new = [fact for fact in facts if fact.id not in known]
    made = np.asarray(embed.embed([text, *(spoken(fact) for fact in new)]), dtype=np.float32)
    if new:
        fresh = dict(zip([fact.id for fact in new], made[1:], strict=True))
        _write(store, embed.name, fresh)
        known |= fresh
    matrix = np.stack([known[fact.id] for fact in facts])
    mean = matrix.mean(0) if len(facts) > 1 else np.zeros_like(matrix[0])
    deviation = matrix.std(0) + 1e-6 if len(facts) >= MIN_FACTS else np.ones_like(mean)
    return _unit((matrix - mean) / deviation) @ _unit((made[0] - mean) / deviation)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)


def _stored(store: Store, name: str, ids: Sequence[int]) -> dict[int, np.ndarray]:
    result: dict[int, np.ndarray] = {}
    with store.read() as connection:
        for begin in range(0, len(ids), 10_000):
            some = vectors.c.fact.in_(ids[begin : begin + 10_000])
            query = select(vectors.c.fact, vectors.c.vector).where(some & (vectors.c.embedder == name))
            result |= {int(id): np.frombuffer(data, dtype="<f4") for id, data in connection.execute(query)}
    return result


def _write(store: Store, name: str, rows: dict[int, np.ndarray]) -> None:
    with store.transaction() as connection:
        for id, vector in rows.items():
            _put(connection, id, name, vector)


def _put(connection: Connection, id: int, name: str, vector: np.ndarray) -> None:
    """Nothing where the fact was deleted meanwhile, or another thread was first."""
    data = vector.astype("<f4").tobytes()
    row = select(table.c.id, literal(name), literal(data)).where(table.c.id == id)
    new = insert(connection, vectors).from_select(["fact", "embedder", "vector"], row)
    connection.execute(new.on_conflict_do_nothing())

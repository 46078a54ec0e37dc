"""Combinations of specialists that succeed together are strengthened, and all fade: Hebbian weights with decay."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import combinations

from sqlalchemy import Column, Connection, Float, Integer, String, Table, select

from synthe_core.swarm.spec import PathwaySpec
from synthe_core.swarm.store import Schema, Store, metadata

SEPARATOR = "+"

pathways = Table(
    "pathways",
    metadata,
    Column("members", String, primary_key=True),
    Column("weight", Float, nullable=False),
    Column("clock", Integer, nullable=False),
    Column("successes", Float, nullable=False),
    Column("answers", Integer, nullable=False),
)


def _create(connection: Connection) -> None:
    metadata.create_all(connection, [pathways])


SCHEMA = Schema("pathways", (_create,))


@dataclass(frozen=True)
class Pathway:
    """A pair of specialists, or one alone. weight: 0 to 1, faded to now; clock: the number of rated answers at which
    it was last changed; answers: rated ones; successes: the sum of their rewards."""

    members: tuple[str, ...]
    weight: float
    clock: int
    successes: float
    answers: int


class Pathways:
    """The weights in the database of a swarm.

    A rated answer of specialists S moves the weight of every pair in S, and of a single one where S has one, by
    w + rate (r - w) from its faded value, r from 0 to 1. Every other weight halves in `half_life` rated answers.
    """

    def __init__(self, store: Store, spec: PathwaySpec) -> None:
        self._store, self._spec = store, spec
        store.prepare(SCHEMA)

    def learn(self, members: Collection[str], reward: float) -> None:
        """Takes in the reward, 0 to 1, of an answer of these specialists."""
        with self._store.transaction() as connection:
            rows = {row.members: row for row in connection.execute(select(pathways))}
            clock = 1 + max((row.clock for row in rows.values()), default=0)
            for each in _groups(members):
                key = SEPARATOR.join(each)
                row = rows.get(key)
                weight = 0.0 if row is None else self._faded(row.weight, clock - row.clock)
                values = {
                    "weight": weight + self._spec.rate * (reward - weight),
                    "clock": clock,
                    "successes": reward + (0.0 if row is None else row.successes),
                    "answers": 1 + (0 if row is None else row.answers),
                }
                if row is None:
                    connection.execute(pathways.insert().values(members=key, **values))
                else:
                    connection.execute(pathways.update().where(pathways.c.members == key).values(**values))

    def weight(self, one: str, other: str) -> float:
        """The weight of a pair now, 0 if it never answered."""
        key = tuple(sorted((one, other)))
        return next((each.weight for each in self.all() if each.members == key), 0.0)

    def all(self) -> list[Pathway]:
        """Every pathway, the strongest first."""
        with self._store.read() as connection:
            rows = connection.execute(select(pathways)).all()
        clock = max((row.clock for row in rows), default=0)
        each = [
            Pathway(
                tuple(row.members.split(SEPARATOR)),
                self._faded(row.weight, clock - row.clock),
                row.clock,
                row.successes,
                row.answers,
            )
            for row in rows
        ]
        return sorted(each, key=lambda pathway: -pathway.weight)

    def _faded(self, weight: float, answers: int) -> float:
        return float(weight * 0.5 ** (answers / self._spec.half_life))


def _groups(members: Iterable[str]) -> list[tuple[str, ...]]:
    ordered = sorted(set(members))
    return [tuple(ordered)] if len(ordered) == 1 else list(combinations(ordered, 2))

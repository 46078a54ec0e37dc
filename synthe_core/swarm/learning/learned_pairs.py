"""Which pairs each version of an adapter was trained on, and which it was measured on and never is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from sqlalchemy import Column, Connection, Index, Integer, String, Table, select

from synthe_core.swarm.feedback.pairs import MAX_IDS, Pairs
from synthe_core.swarm.feedback.tables import pairs as pairs_table
from synthe_core.swarm.store import Schema, Store, metadata
from synthe_core.swarm.versions import LearnedVersion

Use = Literal["trained", "held_out"]

learned_pairs = Table(
    "learned_pairs",
    metadata,
    Column("pair", Integer, primary_key=True),
    Column("user", String, nullable=False),
    Column("specialist", String, primary_key=True),
    Column("adapter", String, nullable=False),
    Column("use", String, nullable=False),
    Index("learned_pairs_by_specialist", "specialist", "use"),
)


def _create(connection: Connection) -> None:
    metadata.create_all(connection, [learned_pairs])


SCHEMA = Schema("learning", (_create,))


class LearnedPairs:
    """The pairs of promoted versions. A pair that was held out once is never trained on while its version counts."""

    def __init__(self, store: Store, pairs: Pairs) -> None:
        self._store, self._pairs = store, pairs
        store.prepare(SCHEMA)

    def of(self, specialist: str, use: Use) -> list[int]:
        """The pairs of a specialist's promoted versions, by id, the first learned first."""
        columns = learned_pairs.c
        query = select(columns.pair).where((columns.specialist == specialist) & (columns.use == use))
        with self._store.read() as connection:
            return [int(row[0]) for row in connection.execute(query.order_by(columns.pair))]

    def add(self, version: LearnedVersion) -> None:
        """Records a promoted version, and marks its pairs as learned, in one transaction. Again it changes nothing."""
        uses: dict[Use, tuple[int, ...]] = {"trained": version.trained, "held_out": version.held_out}
        with self._store.transaction() as connection:
            known = set(self.of(version.specialist, "trained")) | set(self.of(version.specialist, "held_out"))
            for use, ids in uses.items():
                self._pairs.mark_learned(ids)
                users = _users(connection, ids)
                rows = [
                    {"pair": id, "user": user, "specialist": version.specialist, "adapter": version.adapter, "use": use}
                    for id, user in users.items()
                    if id not in known
                ]
                if rows:
                    connection.execute(learned_pairs.insert(), rows)

    def refuse(self, ids: Iterable[int]) -> None:
        """Marks pairs as refused: what was learned of them is not used."""
        self._pairs.mark_refused(ids)

    def remove(self, version: LearnedVersion) -> None:
        """Forgets a version that was rolled back, and marks its pairs as refused, in one transaction."""
        with self._store.transaction() as connection:
            is_own = (learned_pairs.c.adapter == version.adapter) & (learned_pairs.c.specialist == version.specialist)
            connection.execute(learned_pairs.delete().where(is_own))
            self._pairs.mark_refused([*version.trained, *version.held_out])


def _users(connection: Connection, ids: Iterable[int]) -> dict[int, str]:
    """Whose each of the pairs is, of those that are there still."""
    chosen, users = list(ids), dict[int, str]()
    for first in range(0, len(chosen), MAX_IDS):
        some = pairs_table.c.id.in_(chosen[first : first + MAX_IDS])
        query = select(pairs_table.c.id, pairs_table.c.user).where(some)
        users |= {int(id): str(user) for id, user in connection.execute(query)}
    return users

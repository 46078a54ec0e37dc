"""Proposed specialists: found in the requests of a swarm, written down, approved or rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from sqlalchemy import JSON, Column, Connection, Float, Integer, LargeBinary, Row, String, Table, Text

from synthe_core.inference.request import NotFound
from synthe_core.swarm.features import Standardizer
from synthe_core.swarm.feedback.pairs import Pairs, PairState
from synthe_core.swarm.feedback.tables import pairs as pairs_table
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.opening import pair_limits
from synthe_core.swarm.router.observations import Observations
from synthe_core.swarm.spawning.clusters import cluster
from synthe_core.swarm.spawning.requests import RoutedRequest, newest_base, routed_requests
from synthe_core.swarm.spawning.terms import distinctive_terms, new_name
from synthe_core.swarm.spec import MAX_SPECIALISTS, SpawnSpec, SpecialistSpec
from synthe_core.swarm.store import Schema, Store, metadata
from synthe_core.swarm.unknown_name import unknown_name

MIN_TERMS = 2
"""A cluster that fewer words describe is no subject."""
MIN_WEAK_SHARE = 0.5
"""Of all requests that are like a cluster's."""
HOUR = 3600.0

proposals = Table(
    "proposals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("base", String, nullable=False),
    Column("name", String, nullable=False),
    Column("capabilities", JSON, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("centre", LargeBinary, nullable=False),
    Column("requests", Integer, nullable=False),
    Column("hours", Float, nullable=False),
    Column("state", String, nullable=False),
    Column("created", Float, nullable=False),
    sqlite_autoincrement=True,
)


def _create(connection: Connection) -> None:
    metadata.create_all(connection, [proposals])


SCHEMA = Schema("spawning", (_create,))


class ProposalState(StrEnum):
    """NEW: nobody has decided. APPROVED: the specialist was made. REJECTED: it is not proposed again."""

    NEW = "new"
    APPROVED = "approved"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Proposal:
    """A specialist that a cluster of failing requests calls for. requests, hours: how many there are, over which time.
    id: 0 before it is written down."""

    id: int
    base: str
    name: str
    capabilities: tuple[str, ...]
    prompt: str
    requests: int
    hours: float
    state: ProposalState = ProposalState.NEW
    created: float = 0.0

    @property
    def description(self) -> str:
        return f"Requests about {', '.join(self.capabilities)}."

    def json(self) -> dict[str, Any]:
        return asdict(self)


class Proposals:
    """The proposals of a swarm."""

    def __init__(self, folder: SwarmFolder, store: Store) -> None:
        self.folder, self.store = folder, store
        store.prepare(SCHEMA)

    @property
    def spec(self) -> SpawnSpec:
        return self.folder.spec.spawn

    def entries(self, state: ProposalState | None = None) -> list[Proposal]:
        """The proposals, oldest first."""
        query = proposals.select().order_by(proposals.c.id)
        query = query if state is None else query.where(proposals.c.state == state)
        with self.store.read() as connection:
            return [_proposal(row) for row in connection.execute(query)]

    def find(self) -> list[tuple[Proposal, np.ndarray]]:
        """The clusters that persist and are not proposed yet, as proposals without a prompt, with their centres."""
        base = newest_base(self.store)
        room = MAX_SPECIALISTS - len(self.folder.spec.specialists)
        if base is None or room <= 0:
            return []
        every = routed_requests(self.store, base, self.spec.max_confidence)
        points = self._points(base, every)
        weak = np.array([each.is_weak for each in every], bool)
        if weak.sum() < self.spec.min_requests:
            return []
        labels, centres = cluster(points[weak], self.spec.similarity)
        own = [each for each in every if each.is_weak]
        known = self._centres(base)
        taken = {*self.folder.spec.specialists, *(each.name for each in self.entries(ProposalState.NEW))}
        clusters: list[tuple[Proposal, np.ndarray]] = []
        for number, centre in enumerate(centres):
            members = [each for each, label in zip(own, labels, strict=True) if label == number]
            similar = points @ centre >= self.spec.similarity
            is_known = any(float(centre @ other) >= self.spec.similarity for other in known)
            if is_known or not self._persists(members) or weak[similar].mean() < MIN_WEAK_SHARE:
                continue
            inside = {each.answer for each in members}
            terms = distinctive_terms(members, [each for each in every if each.answer not in inside])
            if len(terms) < MIN_TERMS or len(clusters) >= room:
                continue
            name = new_name(terms, taken)
            taken.add(name)
            hours = (members[-1].created - members[0].created) / HOUR
            clusters.append((Proposal(0, base, name, tuple(terms), "", len(members), hours), centre))
        return clusters

    def add(self, proposal: Proposal, centre: np.ndarray) -> Proposal:
        """Writes a proposal down."""
        values = {
            **{name: getattr(proposal, name) for name in ("base", "name", "prompt", "requests", "hours", "state")},
            "capabilities": list(proposal.capabilities),
            "centre": centre.astype("<f4").tobytes(),
            "created": self.store.now(),
        }
        with self.store.transaction() as connection:
            key = connection.execute(proposals.insert().values(**values)).inserted_primary_key
        assert key is not None
        return replace(proposal, id=int(key[0]), created=values["created"])

    def approve(self, name: str) -> SpecialistSpec:
        """Makes the proposed specialist, and gives it the pairs of the requests that it is for, which nobody has
        learned yet. InputError for a name that is not proposed, or is taken meanwhile."""
        proposal = self._new(name)
        spec = SpecialistSpec.model_validate(
            {
                "description": proposal.description,
                "capabilities": list(proposal.capabilities),
                "prompt": proposal.prompt,
            }
        )
        added = self.folder.add(proposal.name, spec)
        self.folder.record("spawned", proposal.name, requests=proposal.requests)
        with self.store.transaction():
            self._move(proposal, ProposalState.APPROVED)
            self._give_pairs(proposal)
        return added

    def reject(self, name: str) -> None:
        """Notes that these requests need no specialist: they are not proposed again."""
        self._move(self._new(name), ProposalState.REJECTED)

    def _new(self, name: str) -> Proposal:
        every = {each.name: each for each in self.entries(ProposalState.NEW)}
        if name not in every:
            if not every:
                raise NotFound(f"no specialist '{name[:50]}' is proposed", "see what is: synthe swarm spawn SWARM")
            raise unknown_name("proposed specialist", name, every)
        return every[name]

    def _persists(self, members: Sequence[RoutedRequest]) -> bool:
        hours = (members[-1].created - members[0].created) / HOUR
        return len(members) >= self.spec.min_requests and hours >= self.spec.min_hours

    def _points(self, base: str, requests: Sequence[RoutedRequest]) -> np.ndarray:
        """The requests as the router sees them: centred, scaled and of length 1."""
        statistics = Observations(self.store, base).statistics()
        embeddings = np.stack([each.embedding for each in requests]) if requests else np.zeros((0, 1))
        return embeddings if statistics is None else Standardizer(*statistics)(embeddings)

    def _centres(self, base: str) -> list[np.ndarray]:
        query = proposals.select().where(proposals.c.base == base)
        with self.store.read() as connection:
            return [np.frombuffer(row.centre, "<f4").astype(np.float64) for row in connection.execute(query)]

    def _move(self, proposal: Proposal, state: ProposalState) -> None:
        with self.store.transaction() as connection:
            connection.execute(proposals.update().where(proposals.c.id == proposal.id).values(state=state))

    def _give_pairs(self, proposal: Proposal) -> None:
        """Pairs of the proposal's requests that wait for a review or for learning become the new specialist's."""
        Pairs(self.store, pair_limits(self.folder))  # the table is there
        query = proposals.select().where(proposals.c.id == proposal.id)
        with self.store.transaction() as connection:
            row = connection.execute(query).one()
            centre = np.frombuffer(row.centre, "<f4").astype(np.float64)
            requests = routed_requests(self.store, proposal.base, self.spec.max_confidence)
            if not requests:
                return
            similar = self._points(proposal.base, requests) @ centre >= self.spec.similarity
            ids = [
                each.answer for each, is_similar in zip(requests, similar, strict=True) if is_similar and each.is_weak
            ]
            waits = pairs_table.c.state.in_([PairState.NEW, PairState.APPROVED])
            is_own = pairs_table.c.answer.in_(ids) & waits
            connection.execute(pairs_table.update().where(is_own).values(specialist=proposal.name))


def _proposal(row: Row[Any]) -> Proposal:
    values = {name: value for name, value in row._mapping.items() if name != "centre"}
    state, capabilities = ProposalState(values["state"]), tuple(values["capabilities"])
    return Proposal(**{**values, "state": state, "capabilities": capabilities})

"""Opening what swarm.yaml sets limits for."""

from __future__ import annotations

from synthe_core.swarm.feedback.pairs import PairLimits
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.knowledge.knowledge import KnowledgeLimits
from synthe_core.swarm.sharing.waiting_facts import take_up
from synthe_core.swarm.store import Store


def open_store(folder: SwarmFolder) -> Store:
    """The database of a swarm: its file, which grows to `knowledge.max_megabytes` at most, or `knowledge.database`.
    Facts that a killed installation has left behind are taken up."""
    spec = folder.spec.knowledge
    store = Store(spec.database or folder.database, max_bytes=spec.max_megabytes << 20)
    take_up(folder, store)
    return store


def knowledge_limits(folder: SwarmFolder) -> KnowledgeLimits:
    return KnowledgeLimits(folder.spec.knowledge.max_facts, folder.spec.knowledge.trust_users)


def pair_limits(folder: SwarmFolder) -> PairLimits:
    return PairLimits(folder.spec.feedback.max_pairs, folder.spec.feedback.max_pairs_per_user)

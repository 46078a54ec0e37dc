"""Opening what swarm.yaml sets limits for."""

from __future__ import annotations

from synthe_core.swarm.feedback.pairs import PairLimits
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.knowledge.knowledge import KnowledgeLimits
from synthe_core.swarm.store import Store


def open_store(folder: SwarmFolder) -> Store:
    """The database of a swarm, which grows to `knowledge.max_megabytes` at most."""
    return Store(folder.database, max_bytes=folder.spec.knowledge.max_megabytes << 20)


def knowledge_limits(folder: SwarmFolder) -> KnowledgeLimits:
    return KnowledgeLimits(folder.spec.knowledge.max_facts, folder.spec.knowledge.trust_users)


def pair_limits(folder: SwarmFolder) -> PairLimits:
    return PairLimits(folder.spec.feedback.max_pairs, folder.spec.feedback.max_pairs_per_user)

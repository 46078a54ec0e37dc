"""Facts of an installed specialist that are not in the database yet: a file beside its adapters."""

from __future__ import annotations

import hashlib
from pathlib import Path

from synthe_core.packing.specialist import SharedFact, facts_of
from synthe_core.storage.json_reader import canonical_json
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.knowledge.fact import Claim, Source
from synthe_core.swarm.knowledge.facts import Facts
from synthe_core.swarm.redaction import redact
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.store import LimitReached, Store


def facts_path(folder: Path, name: str, spec: SpecialistSpec, trust: bool) -> Path:
    """The file of the facts that wait for a specialist as `spec` has it: what a killed installation leaves is nobody
    else's. trust: of those that enter prompts without a review."""
    digest = hashlib.sha256(canonical_json(spec.model_dump(mode="json"))).hexdigest()
    return folder / "adapters" / name / f"{'trusted-' if trust else ''}facts-{digest[:16]}.jsonl"


def take_up(folder: SwarmFolder, store: Store) -> int:
    """Writes waiting facts of the swarm's specialists into the database, each file in one transaction; returns how many
    there were. Taken up twice, nothing is there twice."""
    count = 0
    for name, spec in folder.spec.specialists.items():
        for trust in (False, True):
            path = facts_path(folder.path, name, spec, trust)
            try:
                lines = path.read_bytes().splitlines()
            except FileNotFoundError:
                continue
            facts = Facts(store, folder.spec.knowledge.max_facts)
            with store.transaction():
                count += sum(_add(facts, each, trust) for each in facts_of(lines, str(path)))
            path.unlink(missing_ok=True)
    return count


def _add(facts: Facts, shared: SharedFact, trust: bool) -> bool:
    """Adds one; where a trusted fact of the swarm contradicts it, that one stays and this one is not trusted."""
    parts = (redact(shared.subject), redact(shared.predicate), redact(shared.object))
    claim = Claim(*parts, shared.negated, shared.functional)
    trusted = trust and not facts.contradicted("", claim)
    at = min(shared.valid_from, facts.store.now())
    try:
        facts.add("", claim, Source.IMPORTED, trusted=trusted, confidence=shared.confidence, at=at)
    except LimitReached:
        return False
    return True

"""What a swarm is and has done, as plain values."""

from __future__ import annotations

from typing import Any

from synthe_core.swarm.folder import SwarmFolder


def status(folder: SwarmFolder) -> dict[str, Any]:
    """The base and, for each specialist, what makes it one and when its adapter came."""
    spec = folder.spec
    versions = {entry["specialist"]: entry for entry in folder.ledger() if "version" in entry}
    specialists = []
    for name, each in spec.specialists.items():
        facts: dict[str, Any] = {
            "name": name,
            "description": each.description,
            "capabilities": each.capabilities,
            "adapter": each.adapter,
            "model": each.model,
            "documents": each.documents,
            "prompt": bool(each.prompt),
            "priority": each.priority,
        }
        if each.adapter is not None and name in versions:
            facts |= {key: versions[name][key] for key in ("version", "digest", "time")}
        specialists.append(facts)
    return {"base": folder.base, "specialists": specialists, "synthesis": spec.synthesis.type}

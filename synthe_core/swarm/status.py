"""What a swarm is and has done, as plain values."""

from __future__ import annotations

from typing import Any

from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.opening import open_store
from synthe_core.swarm.record import Record


def status(folder: SwarmFolder) -> dict[str, Any]:
    """The base, each specialist with its adapter and its success, and how well confidence is calibrated."""
    return status_of(folder, _record(folder))


def status_of(folder: SwarmFolder, record: Record | None) -> dict[str, Any]:
    """The same with the record, which is None for a swarm that has answered nothing yet."""
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
        specialists.append(facts | _success(record, name))
    return {
        "base": folder.base,
        "specialists": specialists,
        "fallback": {"name": spec.router.fallback, **_success(record, spec.router.fallback)},
        "synthesis": spec.synthesis.type,
        "answers": 0 if record is None else record.answers.count(),
        "rated": 0 if record is None else len(record.ratings),
        "calibration_error": None if record is None else record.calibration_error(),
        "bytes": 0 if record is None else record.store.size(),
    }


def pathways(folder: SwarmFolder) -> list[dict[str, Any]]:
    """Every combination of specialists that has been rated, the strongest first."""
    record = _record(folder)
    return [] if record is None else pathways_of(record)


def pathways_of(record: Record) -> list[dict[str, Any]]:
    """The same of a record."""
    every = record.pathways.all()
    return [
        {"members": list(p.members), "weight": p.weight, "answers": p.answers, "successes": p.successes} for p in every
    ]


def _record(folder: SwarmFolder) -> Record | None:
    """None for a swarm that has answered nothing yet: asking for its state makes no database."""
    return Record(open_store(folder), folder.spec) if folder.database.exists() else None


def _success(record: Record | None, name: str) -> dict[str, Any]:
    if record is None:
        return {"success": None, "domains": {}}
    overall = record.records.overall(name)
    domains = {
        domain: {"success": beta.mean, "deviation": beta.deviation, "answers": count}
        for domain, (beta, count) in record.records.domains(name).items()
    }
    return {"success": {"mean": overall.mean, "deviation": overall.deviation}, "domains": domains}

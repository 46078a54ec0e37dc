"""What a swarm is and has done, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthe_core.swarm.feedback.pairs import Pairs, PairState
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.plan import SEPARATOR
from synthe_core.swarm.learning.state import learning_now
from synthe_core.swarm.opening import open_store
from synthe_core.swarm.record import Record
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.unknown_name import unknown_name


def status(folder: SwarmFolder) -> dict[str, Any]:
    """The base, each specialist with its adapter and its success, and how well confidence is calibrated."""
    return status_of(folder, _record(folder))


def status_of(folder: SwarmFolder, record: Record | None) -> dict[str, Any]:
    """The same with the record, which is None for a swarm that has answered nothing yet."""
    spec = folder.spec
    counts, ledger = _pair_counts(folder, record), folder.ledger()
    errors = {} if record is None else record.calibration_errors()
    specialists = []
    for name, each in spec.specialists.items():
        current = folder.versions(name).current
        facts: dict[str, Any] = {
            "name": name,
            "description": each.description,
            "capabilities": each.capabilities,
            "adapter": current,
            "model": each.model,
            "documents": each.documents,
            "prompt": bool(each.prompt),
            "priority": each.priority,
            "unavailable": _missing(folder, each, current),
        }
        facts |= _version(ledger, name, current)
        specialists.append(facts | {"pairs": counts[name]} | _success(record, errors, name))
    return {
        "base": folder.base,
        "specialists": specialists,
        "fallback": {"name": spec.router.fallback, **_success(record, errors, spec.router.fallback)},
        "synthesis": spec.synthesis.type,
        "learning": {
            "automatic": spec.learning.automatic,
            "min_pairs": spec.learning.min_pairs,
            "now": learning_now(folder),
        },
        "answers": 0 if record is None else record.answers.count(),
        "rated": 0 if record is None else len(record.ratings),
        "calibration_error": None if record is None else record.calibration_error(),
        "bytes": 0 if record is None else record.store.size(),
    }


def _missing(folder: SwarmFolder, spec: SpecialistSpec, adapter: str | None) -> str | None:
    """Which of its files is gone, so that it cannot answer; None if none is."""
    if spec.url is not None:
        return None
    for what, name in [*(("document", each) for each in spec.documents), ("adapter", adapter)]:
        if name is not None and not Path(folder.resolve(name)).exists():
            return f"no such {what}: {Path(name).name}"
    return None


def _version(ledger: Sequence[dict[str, Any]], name: str, current: str | None) -> dict[str, Any]:
    """The newest line of the ledger on a specialist's current adapter: its digest, and since when."""
    for entry in reversed(ledger):
        named = entry.get("adapter") or (f"adapters/{name}/{entry['version']}" if "version" in entry else None)
        if entry["specialist"] == name and named is not None and named == current:
            return {key: entry[key] for key in ("digest", "time")}
    return {}


def _pair_counts(folder: SwarmFolder, record: Record | None) -> dict[str, dict[str, int]]:
    """The pairs of each specialist by their state."""
    counts = {name: dict.fromkeys(map(str, PairState), 0) for name in folder.spec.specialists}
    if record is not None:
        for (names, state), number in Pairs(record.store).counts_by_specialist().items():
            for name in names.split(SEPARATOR):
                if name in counts:
                    counts[name][state] += number
    return counts


def history(folder: SwarmFolder, specialist: str | None = None) -> list[dict[str, Any]]:
    """The lines of the ledger, oldest first: adapters that came, were learned, refused, rolled back."""
    if specialist is not None:
        names = {entry["specialist"] for entry in folder.ledger()} | folder.spec.specialists.keys()
        if specialist not in names:
            raise unknown_name("specialist", specialist, names)
    return [entry for entry in folder.ledger() if specialist in (None, entry["specialist"])]


def versions(folder: SwarmFolder) -> list[dict[str, Any]]:
    """Every version of the specialists' adapters that was learned and is on the disk, the first first.

    current: whether it answers. parent: the one that a rollback of it returns to, None for no adapter.
    """
    lines = []
    for name, each in folder.spec.specialists.items():
        if each.url is not None:
            continue
        own = folder.versions(name)
        current = own.current
        for version in own.learned():
            values: dict[str, Any] = {"specialist": name, "adapter": version.adapter, "parent": version.parent}
            values |= {"digest": version.digest, "current": version.adapter == current}
            values["pairs"] = {part: len(getattr(version, part)) for part in ("trained", "held_out", "replayed")}
            lines.append({**values, "figures": dict(version.figures)})
    return lines


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
    return Record(open_store(folder), folder.spec) if folder.has_database else None


def _success(record: Record | None, errors: Mapping[str, float | None], name: str) -> dict[str, Any]:
    """The posterior of success, overall and by domain, each with its interval of probability 0.9, and the ECE of the
    confidences that were given."""
    if record is None:
        return {"success": None, "domains": {}, "calibration_error": None}
    overall = record.records.overall(name)
    domains = {
        domain: {"success": beta.mean, "deviation": beta.deviation, "interval": beta.interval, "answers": count}
        for domain, (beta, count) in record.records.domains(name).items()
    }
    success = {"mean": overall.mean, "deviation": overall.deviation, "interval": overall.interval}
    return {"success": success, "domains": domains, "calibration_error": errors.get(name)}

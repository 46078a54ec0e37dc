"""Promotion of what was learned, its refusal, and the way back: each a line of the ledger.

The current version changes in one step (`versions`). What else records it, the ledger and the table of learned pairs,
follows; after a kill in between, `recover` writes what is missing, from version.json of the version itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError
from synthe_core.storage.atomic import new_folder, remove_folder
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.claim import sweep
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.learned_pairs import LearnedPairs
from synthe_core.swarm.learning.plan import Plan
from synthe_core.swarm.learning.training import copy_adapter
from synthe_core.swarm.versions import FACTS, LearnedVersion, Versions

PROMOTED, REFUSED, ROLLED_BACK, FAILED = "promoted", "refused", "rolled back", "failed"
EVENTS = (PROMOTED, REFUSED, ROLLED_BACK, FAILED)
"""Events of the ledger that learning writes."""


class Promotions:
    """The versions of a swarm's specialists as learning changes them. One process does at a time, by its claim."""

    def __init__(self, folder: SwarmFolder, learned: LearnedPairs) -> None:
        self.folder, self.learned = folder, learned

    def promote(self, plan: Plan, trained: Path, base: Path, figures: Mapping[str, Any]) -> LearnedVersion:
        """Makes the adapter at `trained` the current version of the plan's specialist."""
        versions = self.folder.versions(plan.specialist)
        target = versions.next_path()
        with new_folder(target) as partial:
            copy_adapter(trained, base, partial, target)
            version = LearnedVersion(
                plan.specialist,
                versions.named(target),
                plan.start,
                Checkpoint.open(partial, base=base).digest,
                plan.trained,
                plan.held_out,
                plan.replayed,
                figures,
            )
            (partial / FACTS).write_text(json.dumps(version.json(), indent=1) + "\n", encoding="utf-8")
        versions.set_current(version.adapter)
        self._record_promotion(version)
        self._remove_old(versions)
        return version

    def refuse(self, plan: Plan, digest: str, figures: Mapping[str, Any], faults: Sequence[str]) -> None:
        """Records that what was learned is not used; its pairs wait for another review."""
        self.folder.record(
            REFUSED,
            plan.specialist,
            digest=digest,
            parent=plan.start,
            why=list(faults),
            **_counts(plan),
            figures=dict(figures),
        )
        self.learned.refuse([*plan.trained, *plan.held_out])

    def roll_back(self, name: str) -> str | None:
        """Makes the version that the current one was learned from current again; returns it, None for no adapter.

        Its bits are those that it had. InputError where the current version was not learned, or the earlier one is gone
        or has changed.
        """
        versions = self.folder.versions(name)
        current = versions.facts(versions.current)
        if current is None:
            raise InputError(f"{name} has learned nothing that could be rolled back", "see: synthe swarm history SWARM")
        if current.parent is not None and not (self.folder.path / current.parent).exists():
            hint = "learning.versions says how many stay"
            raise InputError(f"{current.parent} of {name} is no longer there", hint)
        digest = versions.digest(current.parent)
        known = versions.facts(current.parent)
        if known is not None and known.digest != digest:
            raise InputError(f"{current.parent} of {name} has changed since it was learned", "restore it from a copy")
        versions.set_current(current.parent)
        self._record_roll_back(versions, current)
        return current.parent

    def recover(self) -> None:
        """Finishes what a kill has interrupted: whichever version is current, ledger and table follow it."""
        last: dict[str, dict[str, Any]] = {}
        for entry in self.folder.ledger():
            if entry["event"] in (PROMOTED, ROLLED_BACK):
                last[entry["specialist"]] = entry
        for name in self.folder.spec.specialists:
            versions = self.folder.versions(name)
            current, newest = versions.current, last.get(name)
            recorded = versions.origin if newest is None else newest["adapter"]
            if current != recorded:
                version, before = versions.facts(current), versions.facts(recorded)
                if version is not None and version.parent == recorded:
                    self._record_promotion(version)
                elif before is not None and before.parent == current:
                    self._record_roll_back(versions, before)
            elif (version := versions.facts(current)) is not None:
                self.learned.add(version)  # if the kill was after the line of the ledger
            self._remove_unused(versions, {entry["adapter"] for entry in self.folder.ledger() if "adapter" in entry})

    def _remove_old(self, versions: Versions) -> None:
        """Removes learned versions beyond those that `learning.versions` lets stay: the current one and those that it
        was learned from come first, then the newest others."""
        learned = {each.adapter: each for each in versions.learned()}
        chain, at = list[str](), versions.current
        while at in learned and at not in chain:
            chain.append(at)
            at = learned[at].parent
        order = [*chain, *(name for name in reversed(learned) if name not in chain)]
        for name in order[self.folder.spec.learning.versions :]:
            remove_folder(self.folder.path / name)

    def _record_promotion(self, version: LearnedVersion) -> None:
        counts = {"trained": len(version.trained), "held_out": len(version.held_out), "replayed": len(version.replayed)}
        facts = {"adapter": version.adapter, "digest": version.digest, "parent": version.parent}
        self.folder.record(PROMOTED, version.specialist, **facts, pairs=counts, figures=dict(version.figures))
        self.learned.add(version)

    def _record_roll_back(self, versions: Versions, undone: LearnedVersion) -> None:
        facts = {"adapter": undone.parent, "digest": versions.digest(undone.parent), "undone": undone.adapter}
        self.folder.record(ROLLED_BACK, versions.name, **facts)
        self.learned.remove(undone)

    def _remove_unused(self, versions: Versions, recorded: set[str | None]) -> None:
        """Removes versions that were written and never became current, and what was written in part."""
        if versions.path.is_dir():
            sweep(versions.path)
        for version in versions.learned():
            if version.adapter not in recorded and version.adapter != versions.current:
                remove_folder(self.folder.path / version.adapter)


def _counts(plan: Plan) -> dict[str, Any]:
    counts = {"trained": len(plan.trained), "held_out": len(plan.held_out), "replayed": len(plan.replayed)}
    return {"pairs": counts}

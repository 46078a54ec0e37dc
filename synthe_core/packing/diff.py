"""The verb `pack diff`: in what two models differ, key by key and tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from synthe_core.events import Event, Progress, Result
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.members import weights
from synthe_core.recipe.differences import differences
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.checkpoint.sources import CheckpointSource

SHOWN_APART = {"files", "checkpoint", "memory"}


def diff(one: Path, other: Path) -> Iterator[Event]:
    """A Result with the differences of two files (or checkpoints): recipe, manifest, members and weights.

    Of each tensor that differs: the largest difference, and the root of the mean square of the difference over that of
    the first.
    """
    both = [Checkpoint.open(path) for path in (one, other)]
    recipe = differences(both[0].recipe.model_dump(mode="json"), both[1].recipe.model_dump(mode="json"))
    facts = [each.manifest.files for each in both]
    about = _manifests(both[0].source, both[1].source)
    members = {
        "only in the first": sorted(facts[0].keys() - facts[1].keys()),
        "only in the second": sorted(facts[1].keys() - facts[0].keys()),
        "changed": sorted(name for name in facts[0].keys() & facts[1].keys() if facts[0][name] != facts[1][name]),
    }
    same = [{n: f.sha256 for n, f in each.items() if weights(n)} for each in facts]
    tensors: list[dict[str, Any]] = []
    absent: dict[str, list[str]] = {"only in the first": [], "only in the second": []}
    if same[0] != same[1]:
        names = list(dict.fromkeys([*both[0].tensors, *both[1].tensors]))
        for count, name in enumerate(names, start=1):
            if name not in both[1].tensors:
                absent["only in the first"].append(name)
            elif name not in both[0].tensors:
                absent["only in the second"].append(name)
            elif (found := _difference(both[0], both[1], name)) is not None:
                tensors.append(found)
            yield Progress("compare", count, len(names), "tensors")
    yield Result(
        {
            "same": not (recipe or any(members.values()) or about),
            "manifest": about,
            "recipe": recipe,
            "members": members,
            "tensors": sorted(tensors, key=lambda each: -(each["relative"] or math.inf)),
            "tensors_absent": absent,
        }
    )


def _manifests(one: CheckpointSource, other: CheckpointSource) -> list[str]:
    """In what two files' manifests differ; a checkpoint's folder has none of that kind to compare."""
    if not (isinstance(one, Bundle) and isinstance(other, Bundle)):
        return []
    told = [each.about.model_dump(mode="json", exclude=SHOWN_APART) for each in (one, other)]
    return differences(told[0], told[1])


def _difference(one: Checkpoint, other: Checkpoint, name: str) -> dict[str, Any] | None:
    shapes = one.tensors.shape(name), other.tensors.shape(name)
    if shapes[0] != shapes[1]:
        return {"name": name, "shapes": [list(shape) for shape in shapes], "largest": None, "relative": None}
    first, second = one.tensors[name], other.tensors[name]
    if torch.equal(first, second):
        return None
    change = (second.double() - first.double()).abs()
    size = float(first.double().square().mean().sqrt())
    root = float(change.square().mean().sqrt())
    return {"name": name, "largest": float(change.max()), "relative": root / size if size else math.inf}

"""The verb `pack diff`: the differences of two models, key by key and tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from synthe_core.events import Event, Progress, Result
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.members import is_weights
from synthe_core.recipe.differences import differences
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.checkpoint.sources import CheckpointSource

SHOWN_ELSEWHERE = {"files", "checkpoint", "memory"}


def diff(one: Path, other: Path) -> Iterator[Event]:
    """A Result with the differences of two files (or checkpoints): recipe, manifest, members and weights.

    For each tensor that differs: the largest difference, and the RMS of the difference over the RMS of the first.
    """
    checkpoints = [Checkpoint.open(path) for path in (one, other)]
    recipe = differences(checkpoints[0].recipe.model_dump(mode="json"), checkpoints[1].recipe.model_dump(mode="json"))
    digests = [each.manifest.files for each in checkpoints]
    manifest = _manifests(checkpoints[0].source, checkpoints[1].source)
    members = {
        "only in the first": sorted(digests[0].keys() - digests[1].keys()),
        "only in the second": sorted(digests[1].keys() - digests[0].keys()),
        "changed": sorted(
            name for name in digests[0].keys() & digests[1].keys() if digests[0][name] != digests[1][name]
        ),
    }
    same = [{n: f.sha256 for n, f in each.items() if is_weights(n)} for each in digests]
    tensors: list[dict[str, Any]] = []
    missing: dict[str, list[str]] = {"only in the first": [], "only in the second": []}
    if same[0] != same[1]:
        names = list(dict.fromkeys([*checkpoints[0].tensors, *checkpoints[1].tensors]))
        for count, name in enumerate(names, start=1):
            if name not in checkpoints[1].tensors:
                missing["only in the first"].append(name)
            elif name not in checkpoints[0].tensors:
                missing["only in the second"].append(name)
            elif (difference := _difference(checkpoints[0], checkpoints[1], name)) is not None:
                tensors.append(difference)
            yield Progress("compare", count, len(names), "tensors")
    yield Result(
        {
            "same": not (recipe or any(members.values()) or manifest),
            "manifest": manifest,
            "recipe": recipe,
            "members": members,
            "tensors": sorted(tensors, key=lambda each: -(each["relative"] or math.inf)),
            "tensors_absent": missing,
        }
    )


def _manifests(one: CheckpointSource, other: CheckpointSource) -> list[str]:
    """The differences of two files' manifests; none if one is a checkpoint folder."""
    if not (isinstance(one, Bundle) and isinstance(other, Bundle)):
        return []
    manifests = [each.pack_manifest.model_dump(mode="json", exclude=SHOWN_ELSEWHERE) for each in (one, other)]
    return differences(manifests[0], manifests[1])


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

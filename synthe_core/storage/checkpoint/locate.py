"""Finding checkpoints: those of a run folder, the best of them, and what a mistyped path may have meant."""

from __future__ import annotations

from pathlib import Path

from synthe_core.errors import InputError, closest
from synthe_core.storage.hub.model_id import OWN_FOLDERS, PREFIX, HubId
from synthe_core.storage.manifest import MANIFEST, Manifest

CHECKPOINTS = "checkpoints"
BITS_PER_BYTE = "bits_per_byte"


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(path.parent for path in (run / CHECKPOINTS).glob(f"step-*/{MANIFEST}"))


def best_checkpoint(paths: list[Path]) -> Path | None:
    """The one with the fewest bits per byte in validation (an encoder: the least loss); None if none was validated."""
    scores = {}
    for path in paths:
        try:
            metrics = Manifest.read(path).metrics
        except InputError:  # a damaged checkpoint is reported when it is opened
            continue
        score = metrics.get(BITS_PER_BYTE, metrics.get("loss"))
        if score is not None:
            scores[path] = score
    return min(scores, key=lambda path: scores[path]) if scores else None


def missing_checkpoint(path: Path) -> InputError:
    """The error for a path that does not exist, with the nearest name beside it as the hint."""
    hint = "train one: synthe train recipes/tiny.yaml"
    if path.parent.is_dir():
        names = [each.name for each in path.parent.iterdir() if each.is_dir() or each.suffix == ".synapse"]
        if near := closest(path.name, names):
            hint = f"did you mean {path.parent / near}?"
    if HubId.parse(str(path)) and path.parts[0] not in OWN_FOLDERS:
        hint += f" Or for a model of the hub: {PREFIX}{path}"
    return InputError(f"no such checkpoint: {path}", hint)

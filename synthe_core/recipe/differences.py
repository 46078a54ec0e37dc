"""How two recipes differ, key by key."""

from __future__ import annotations

import json
from typing import Any

LONGEST = 60  # letters of a value that are shown


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The keys whose values differ between the plain values of two recipes, as `train.lr: 0.003 -> 0.001`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in differences(*pair, f"{path}.{i}")]
    return [] if old == new else [f"{path}: {_shortened(old)} -> {_shortened(new)}"]


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."

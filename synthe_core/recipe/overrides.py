"""`key.path=value`: one value of a recipe, set by an option."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from synthe_core.errors import InputError
from synthe_core.layers import LAYERS
from synthe_core.layers.learner import Spec
from synthe_core.storage.yaml_reader import Key, parse_value

PATH_KEYS = {
    *("data.sources", "data.sources.source", "data.validation", "data.tokenizer", "data.tokenizer.type"),
    *("train.canary", "objective.teacher", "objective.document"),
}
"""Keys of which a value may be a path; numbers that index a list are left out."""


def assign(values: dict[str, Any], assignment: str) -> tuple[Key, ...]:
    """Applies `train.lr=1e-3` or `model.block.1.heads=4` to the plain values of a recipe; returns the key's path."""
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise InputError(f"--set {assignment}: expected key=value", "for example --set train.lr=1e-3")
    keys = path.strip().split(".")
    value = _value(keys, text, f"--set {assignment}")
    if keys[0] == "objective" and len(keys) > 1:
        _name_objective(values, value if keys[1:] == ["type"] else None)
    node: Any = values
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise InputError(f"--set {path}: '{key}' is no index of a list of {len(node)}", "counting starts at 0")
            if last:
                node[int(key)] = value
            elif isinstance(node[int(key)], str):
                node[int(key)] = {"type": node[int(key)]}
            node = node[int(key)]
        elif isinstance(node, dict):
            if last:
                if key == "type" and keys[:2] == ["model", "block"] and value in LAYERS:
                    _keep_only(node, LAYERS[value].Config)
                node[key] = value
            node = node.setdefault(key, {})
        else:
            raise InputError(f"--set {path}: '{'.'.join(keys[:depth])}' is a single value, not a mapping")
    return tuple(int(key) if key.isdigit() else key for key in keys)


def _name_objective(values: dict[str, Any], name: str | None) -> None:
    """Turns `objective: dpo` into a mapping; one of another `name` loses its keys, which may not be its own."""
    current = values.get("objective")
    current = {"type": current} if isinstance(current, str) else current or {}
    values["objective"] = {} if name is not None and current.get("type") != name else current


def _value(keys: Sequence[str], text: str, name: str) -> Any:
    """The YAML value in `text`. Where a path may stand, one that exists, or is no YAML, is taken as it is written."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{name!a}: this is not UTF-8", "give the file a name in UTF-8")
    path = ".".join(key for key in keys if not key.isdigit()) in PATH_KEYS
    if path and text and os.path.lexists(os.path.expanduser(text)):
        return text
    if text[:1] in '["{':
        with suppress(ValueError):
            return json.loads(text)  # YAML would read a letter of two escapes as two halves
    try:
        return parse_value(text, name)
    except InputError:
        if path and text[-1:] not in ("]", "}"):
            return text
        raise


def _keep_only(entry: dict[str, Any], config: type[Spec]) -> None:
    """Drops the keys that a learner of another type does not have, so that one --set replaces a learner."""
    for key in entry.keys() - config.model_fields.keys():
        del entry[key]

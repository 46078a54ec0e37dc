"""JSON and YAML from strangers: small, shallow, without doubles or tricks, or one line that says what is wrong."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import yaml

from synthe_core.errors import InputError

HINT = "this file is not to be trusted: get another copy from where it came"
DEPTH = 64


def json_object(content: bytes, name: str) -> dict[str, Any]:
    """A JSON object in which no key occurs twice and every number is one; InputError for anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is given twice")
        return found

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number")

    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
        json.dumps(found, ensure_ascii=False).encode()  # an escape may stand for half a character
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no JSON: {' '.join(str(error).split())[:120]}", HINT) from None
    if not isinstance(found, dict):
        raise InputError(f"{name} is no JSON object", HINT)
    return found


def json_bytes(content: Any) -> bytes:
    """The one way in which JSON is written, so that the same content is the same bytes."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def yaml_text(content: bytes, name: str) -> str:
    """YAML text that is safe to compose: no aliases, which a few lines can make into gigabytes, and no great depth."""
    try:
        text = content.decode("utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError(f"it is nested more than {DEPTH} deep")
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name} is not read: {' '.join(str(error).split())[:120]}", HINT) from None
    return text

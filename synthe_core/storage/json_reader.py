"""Reading JSON objects: those that come with a model, and strictly those of untrusted files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from synthe_core.errors import InputError

UNTRUSTED = "this file is not to be trusted: get another copy from where it came"
EXCERPT = 120  # letters of a library's message that an error repeats


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, Infinity and NaN included (published models have them). InputError otherwise."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}", "copy it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object", "copy it again")
    return values


def parse_untrusted_json(content: bytes, name: str) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN, Infinity or lone surrogates. InputError otherwise."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("a key is given twice")
        return values

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number")

    try:
        values = json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        json.dumps(values, ensure_ascii=False).encode()  # fails for a lone surrogate
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {' '.join(str(error).split())[:EXCERPT]}", UNTRUSTED) from None
    if not isinstance(values, dict):
        raise InputError(f"{name} is not a JSON object", UNTRUSTED)
    return values


def canonical_json(content: Any) -> bytes:
    """JSON text in one fixed form: equal content gives equal bytes."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"

"""Reading JSON objects: those that come with a model, and strictly those of untrusted files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from synthe_core.errors import InputError

UNTRUSTED = "this file is not to be trusted: get another copy from where it came"
MAX_BYTES = 64 << 20
MAX_VALUES = 4_000_000  # commas and brackets
EXCERPT = 120  # letters of a library's message that an error repeats


def read_json(path: Path, max_bytes: int = MAX_BYTES, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """The object in a JSON file, Infinity and NaN included (published models have them). InputError otherwise, and for
    a file past the bounds."""
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise ValueError(f"it has {size:,} bytes, and may have {max_bytes:,}")
        content = path.read_bytes()
        check_values(content, max_values)
        values = json.loads(content.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}", "copy it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object", "copy it again")
    return values


def check_values(content: bytes, most: int) -> None:
    """ValueError for JSON of so many values that parsing it would take much more memory than the text does."""
    count = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    if count > most:
        raise ValueError(f"it has {count:,} values, and may have {most:,}")


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
        check_values(content, MAX_VALUES)
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

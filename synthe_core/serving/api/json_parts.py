"""Long JSON, written in short parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pydantic_core

PART = 1000  # items of a list that are written at a time
_whole = partial(pydantic_core.to_json, inf_nan_mode="null")


def to_json(value: Any) -> bytes:
    """The JSON of a value; NaN is null. Other threads go on in between, which wait while pydantic writes a part."""
    return b"".join(json_parts(value))


def json_parts(value: Any) -> Iterator[bytes]:
    """The parts."""
    if isinstance(value, dict):
        for index, (name, each) in enumerate(value.items()):
            yield (b"," if index else b"{") + _whole(name) + b":"
            yield from json_parts(each)
        yield b"}" if value else b"{}"
    elif isinstance(value, list) and len(value) > PART:
        for first in range(0, len(value), PART):
            part = _whole(value[first : first + PART])
            yield (b"," if first else b"[") + part[1:-1]
        yield b"]"
    elif isinstance(value, list) and any(isinstance(each, (dict, list)) for each in value):
        for index, each in enumerate(value):
            yield b"," if index else b"["
            yield from json_parts(each)
        yield b"]"
    else:
        yield _whole(value)

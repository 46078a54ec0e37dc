"""A body as JSON, with limits that hold before anything is built from it: values, names of an object, depth."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from synthe_core.serving.api.content import check_text
from synthe_core.serving.api.errors import QUOTED, HttpError, invalid

B = TypeVar("B", bound=BaseModel)

MAX_VALUES = 300_000
"""Values and names in a body. A body may have more only where the server takes longer prompts, as token ids."""
MAX_CONTAINERS = 16_384
"""Objects and lists in a body."""
MAX_NAMES = 4096  # of one object
SLICE = 1 << 18  # bytes that are looked at in one go: other threads wait meanwhile
INSIDE = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
STRING = re.compile(rb'"' + INSIDE + rb'"|(")' + INSIDE + rb"(\\?)\Z", re.DOTALL)  # whole, or begun in this slice
REST = re.compile(INSIDE, re.DOTALL)


def parse_body(content: bytes, model: type[B], max_values: int = MAX_VALUES) -> B:
    """The validated body. Raises HttpError for one that is not JSON, exceeds a limit or is invalid."""
    if not content.strip():
        raise HttpError(400, "the body is empty: it should be a JSON object")
    _check_size(content, max_values)
    try:
        value = from_json(content, allow_inf_nan=False)  # which limits the depth and the digits of a number
    except ValueError as error:
        check_text(content)
        raise HttpError(400, f"the body is invalid: {str(error)[:QUOTED]}") from None
    _check_names(value)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error, model) from None


class _Separators:
    """What precedes the values of JSON: each but the first follows one of these."""

    def __init__(self) -> None:
        self.containers = self.total = 0

    def add(self, part: bytes) -> None:
        containers = part.count(b"[") + part.count(b"{")
        self.containers += containers
        self.total += containers + part.count(b",") + part.count(b":")


def _check_size(content: bytes, max_values: int) -> None:
    """Raises HttpError for too many values. Nothing is built from the body; separators are counted."""
    counted = _Separators()
    for first in range(0, len(content), SLICE):
        counted.add(content[first : first + SLICE])
    if counted.containers <= MAX_CONTAINERS and counted.total < max_values:  # even with those within strings
        return
    counted, position, strings = _Separators(), 0, 0
    while position < len(content):
        part = content[position : position + SLICE]
        outside, number = STRING.subn(rb"\1\2", part)  # a string that is not whole leaves its quote
        counted.add(outside)
        strings += number
        position += len(part)
        if outside.endswith((b'"', b'"\\')):
            position = _string_end(content, position - outside.endswith(b"\\"))
        if counted.containers > MAX_CONTAINERS:
            raise HttpError(400, f"the body has more than {MAX_CONTAINERS:,} lists and objects")
        if max(counted.total, strings - 1) >= max_values:  # strings may have nothing between them
            raise HttpError(400, f"the body has more than {max_values:,} values")


def _string_end(content: bytes, position: int) -> int:
    """Where the string ends that has begun before `position`."""
    while (match := REST.match(content, position, position + SLICE)) is not None and match.end() > position:
        position = match.end()
    return position + 1


def _check_names(value: Any) -> None:
    """Raises HttpError for an object with too many names: each may become an error."""
    nested = [value]
    while nested:
        each = nested.pop()
        if isinstance(each, dict):
            if len(each) > MAX_NAMES:
                raise HttpError(400, f"an object in the body has more than {MAX_NAMES:,} names")
            each = list(each.values())
        if isinstance(each, list):
            nested += [inner for inner in each if isinstance(inner, (list, dict))]

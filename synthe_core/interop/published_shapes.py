"""What ours are made of, by shapes alone: it stays with an imported model, where the published one may be gone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from synthe_core.errors import InputError
from synthe_core.interop.huggingface.families.plan import Origin

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Shapes(Protocol):
    """Names of tensors and their shapes."""

    def __contains__(self, name: object, /) -> bool: ...
    def shape(self, name: str) -> list[int]: ...


class Conversion(NamedTuple):
    """What our tensors are made of, their shapes, and the published ones'."""

    origins: Mapping[str, Origin]
    ours: Mapping[str, tuple[int, ...]]
    published: Shapes


def recorded_shapes(shapes: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The shapes of published tensors: one entry for those that differ by the numbers in their names alone, written as
    `#`, where their shapes are equal."""
    groups: dict[str, set[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        groups.setdefault(NUMBER.sub("#", name), set()).add(tuple(shape))
    return {
        pattern if len(groups[pattern := NUMBER.sub("#", name)]) == 1 else name: list(shape)
        for name, shape in shapes.items()
    }


class RecordedShapes:
    """The inverse of `recorded_shapes`. InputError for what is no such record."""

    def __init__(self, record: object, source: object) -> None:
        if not isinstance(record, dict) or not all(map(_is_shape, record.values())):
            raise InputError(f"{source} is damaged: it has no shapes of the published model", "import the model again")
        self._shapes: dict[str, list[int]] = record

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._shapes or NUMBER.sub("#", name) in self._shapes)

    def shape(self, name: str) -> list[int]:
        return self._shapes[name] if name in self._shapes else self._shapes[NUMBER.sub("#", name)]


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)

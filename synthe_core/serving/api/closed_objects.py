"""JSON Schemas whose objects have no properties but those that are named, as other servers read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

IN_PLACE = ("allOf", "anyOf", "oneOf")
"""Lists of schemas of the same value."""
MAPPINGS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = (*IN_PLACE, "prefixItems")
SINGLE = ("additionalProperties", "unevaluatedProperties", "items", "contains", "propertyNames", "if", "then", "else")
OPEN = "$open"
"""Where definitions are that a schema combines with others: alone they would forbid what the others name."""


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with `additionalProperties: false` for every object that names properties and does not say.

    Where schemas are combined (`allOf`, a reference beside properties), the combination is closed: it has the
    properties that any part names. An object without `properties` may have any.
    """
    return _Closing(schema).whole()


class _Closing:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._open: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._waiting: list[str] = []

    def whole(self) -> dict[str, Any]:
        result: dict[str, Any] = self._closed(self._root)
        while self._waiting:  # one after the other: references may be nested deeply
            reference = self._waiting.pop()
            self._open[self._names[reference]] = self._part(self._resolved(reference))
        if self._open:
            result[OPEN] = self._open
        return result

    def _closed(self, schema: Any) -> Any:
        """A schema of a value of its own."""
        if not isinstance(schema, Mapping):
            return schema
        if not self._is_combined(schema):
            result = self._inside(schema, self._closed)
            if _names_properties(schema) and not _says(schema):
                result["additionalProperties"] = False
            return result
        result = self._inside(schema, self._part)
        parts = list(self._parts(schema))
        if any(_names_properties(part) for part in parts) and not any(map(_says, parts)):
            for key in ("properties", "patternProperties"):
                named: dict[str, Any] = {name: {} for part in parts for name in _mapping(part, key)}
                if named:
                    result[key] = named | dict(_mapping(result, key))
            result["additionalProperties"] = False
        return result

    def _part(self, schema: Any) -> Any:
        """A schema that is combined with others: it stays open, what is inside it is closed."""
        if not isinstance(schema, Mapping):
            return schema
        return self._inside(schema, self._part)

    def _inside(self, schema: Mapping[str, Any], combine: Any) -> dict[str, Any]:
        """A copy in which inner schemas are closed, and schemas of the same value are what `combine` makes of them."""
        result = dict(schema)
        for key, value in schema.items():
            if key in MAPPINGS and isinstance(value, Mapping):
                result[key] = {name: self._closed(each) for name, each in value.items()}
            elif key in LISTS and isinstance(value, list):
                result[key] = [(combine if key in IN_PLACE else self._closed)(each) for each in value]
            elif key in SINGLE:
                result[key] = self._closed(value)
            elif key == "$ref" and combine == self._part:
                result[key] = self._open_reference(value)
        return result

    def _open_reference(self, reference: Any) -> Any:
        """A reference to the open form of a definition."""
        if self._resolved(reference) is None:
            return reference
        if reference not in self._names:
            self._names[reference] = str(len(self._names))
            self._waiting.append(reference)
        return f"#/{OPEN}/{self._names[reference]}"

    def _is_combined(self, schema: Mapping[str, Any]) -> bool:
        """Whether several schemas of one value say together which properties it has."""
        branches = [schema[key] for key in IN_PLACE if isinstance(schema.get(key), list)]
        own = _names_properties(schema)
        if own:
            return bool(branches) or "$ref" in schema
        return len(branches) + ("$ref" in schema) > 1 or len(_list(schema, "allOf")) > 1

    def _parts(self, schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The schema and those of the same value in it."""
        waiting: list[Any] = [schema]
        seen: set[str] = set()
        while waiting:
            part = waiting.pop()
            if not isinstance(part, Mapping):
                continue
            yield part
            waiting += [each for key in IN_PLACE for each in _list(part, key)]
            reference = part.get("$ref")
            if isinstance(reference, str) and reference not in seen:
                seen.add(reference)
                waiting.append(self._resolved(reference))

    def _resolved(self, reference: Any) -> Any:
        """What a reference within the schema refers to; None if it is nothing."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        place: Any = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            place = place.get(name) if isinstance(place, Mapping) else None
        return place


def _names_properties(schema: Mapping[str, Any]) -> bool:
    return isinstance(schema.get("properties"), Mapping) or isinstance(schema.get("patternProperties"), Mapping)


def _says(schema: Mapping[str, Any]) -> bool:
    return "additionalProperties" in schema or "unevaluatedProperties" in schema


def _mapping(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []

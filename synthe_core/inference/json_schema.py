"""Whether any JSON of finite length obeys a JSON schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

Types = frozenset[str] | None
"""The types that a value may have; None: any."""


def has_finite_value(schema: Any) -> bool:
    """False if every value that obeys the schema would have to contain itself, like `{"$ref": "#"}`.

    What can be finished is the least fixed point of rules: an object can if all its required properties can, an array
    if as many elements as it needs can, `anyOf` if one of its schemas can. Keywords that are not looked at count as
    satisfied, so that False is certain and True is not.
    """
    return _Rules(schema).root_is_finite()


class _Rules:
    """Nodes with the number of children that must be finite before they are; 0: finite at once. A node of kind `all`
    waits for all its children, one of kind `any` for one."""

    def __init__(self, schema: Any) -> None:
        self.document = schema
        self.missing: list[int] = []
        self.parents: list[list[int]] = []
        self._known: dict[tuple[int, Types], int] = {}
        self._todo: list[tuple[int, Any, Types]] = []
        self.root = self._schema(schema, None)
        while self._todo:
            node, value, types = self._todo.pop()
            self._require(node, self._requirements(value, types))

    def root_is_finite(self) -> bool:
        finite = [node for node, count in enumerate(self.missing) if count == 0]
        for node in finite:  # which grows
            for parent in self.parents[node]:
                self.missing[parent] -= 1
                if self.missing[parent] == 0:
                    finite.append(parent)
        return self.missing[self.root] <= 0

    def _node(self, missing: int) -> int:
        self.missing.append(missing)
        self.parents.append([])
        return len(self.missing) - 1

    def _require(self, node: int, children: list[int]) -> None:
        self.missing[node] = len(children)
        for child in children:
            self.parents[child].append(node)

    def _any(self, children: list[int]) -> int:
        node = self._node(1)
        for child in children:
            self.parents[child].append(node)
        return node

    def _all(self, children: list[int]) -> int:
        node = self._node(0)
        self._require(node, children)
        return node

    def _schema(self, value: Any, types: Types) -> int:
        """The node of a schema whose value has one of `types`."""
        if not isinstance(value, Mapping):
            return self._node(1 if value is False else 0)
        key = id(value), types
        if key not in self._known:
            self._known[key] = self._node(1)
            self._todo.append((self._known[key], value, types))
        return self._known[key]

    def _requirements(self, schema: Mapping[str, Any], types: Types) -> list[int]:
        """What must be finite for a value of the schema to be."""
        if "const" in schema or "enum" in schema:
            return []
        together = [each for each in _listed(schema.get("allOf")) if isinstance(each, Mapping)]
        for each in (schema, *together):
            types = _common(types, each.get("type"))
        needed = [self._schema(each, types) for each in _listed(schema.get("allOf"))]
        if isinstance(schema.get("$ref"), str) and (target := self._resolve(schema["$ref"])) is not None:
            needed.append(self._schema(target, types))
        for choice in ("anyOf", "oneOf"):
            if isinstance(schema.get(choice), list):
                needed.append(self._any([self._schema(each, types) for each in schema[choice]]))
        if types is not None and types <= {"object", "array"}:
            parts = {"object": self._properties, "array": self._elements}
            needed.append(self._any([self._all(parts[each](schema)) for each in sorted(types)]))
        return needed

    def _properties(self, schema: Mapping[str, Any]) -> list[int]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        names = [name for name in _listed(schema.get("required")) if isinstance(name, str)]
        other = True if "patternProperties" in schema else schema.get("additionalProperties", True)
        return [self._schema(properties.get(name, other), None) for name in names]

    def _elements(self, schema: Mapping[str, Any]) -> list[int]:
        least = schema.get("minItems", 0)
        least = least if isinstance(least, int | float) else 0
        first = _listed(schema.get("prefixItems"))
        needed = [self._schema(each, None) for each in first[: int(min(least, len(first)))]]
        if least > len(first):
            needed.append(self._schema(schema.get("items", True), None))
        return needed

    def _resolve(self, reference: str) -> Any:
        """What a JSON pointer of this document points at; None for another reference, or one to nothing."""
        if not reference.startswith("#") or (reference != "#" and not reference.startswith("#/")):
            return None
        place = self.document
        for part in reference[2:].split("/") if len(reference) > 1 else []:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping):
                place = place.get(key)
            elif isinstance(place, list) and key.isdecimal() and int(key) < len(place):
                place = place[int(key)]
            else:
                return None
        return place


def _common(types: Types, declared: Any) -> Types:
    """The types that are also `declared` by a `type` keyword."""
    if isinstance(declared, str):
        declared = [declared]
    if not isinstance(declared, list) or not all(isinstance(each, str) for each in declared):
        return types
    return frozenset(declared) if types is None else types & frozenset(declared)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

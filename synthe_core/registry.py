"""Lazy tables of names: `name -> "module:object"`, extended by plugins through entry points."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from synthe_core.errors import InputError, unknown


class Table:
    """A table of named objects, each imported on first use.

    kind: the word for an entry in errors ("learner"). group: the entry-point group with which plugins extend it.
    """

    def __init__(self, kind: str, group: str, entries: dict[str, str], aliases: dict[str, str] | None = None) -> None:
        self.kind = kind
        self.group = group
        self._own = entries
        self._aliases = aliases or {}

    @cached_property
    def _entries(self) -> dict[str, str]:
        plugins = {point.name: point.value for point in entry_points(group=self.group)}
        return plugins | self._own

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._aliases

    def __getitem__(self, name: str) -> Any:
        name = self._aliases.get(name, name)
        if name not in self._entries:
            raise unknown(self.kind, str(name), self._entries)
        module, _, attribute = self._entries[name].partition(":")
        return getattr(import_module(module), attribute)


def parse_entry(table: Table, entry: Any, last: str | None = None) -> Any:
    """A recipe's `{type: delta, heads: 8}`, or `delta`, as the `Config` of that object of a table.

    last: the key that errors name last. Errors are PydanticCustomErrors, which the recipe's errors unfold, so that each
    has the place of its key.
    """
    if isinstance(entry, str):
        entry = {"type": entry}
    if not isinstance(entry, dict) or "type" not in entry:
        article = "an" if table.kind[0] in "aeiou" else "a"
        raise PydanticCustomError(
            "entry",
            "{article} {kind} is a name or a mapping with a `type`, such as {{type: {example}}}",
            {"article": article, "kind": table.kind, "example": next(iter(table))},
        )
    try:
        config = table[entry["type"]].Config
    except InputError as error:
        raise PydanticCustomError(
            "entry", "{message}", {"message": error.message, "hint": error.hint, "key": "type"}
        ) from None
    try:
        return config.model_validate(entry)
    except ValidationError as error:
        keys = sorted(config.model_fields, key=lambda key: key == last)
        context: dict[str, Any] = {"count": error.error_count(), "nested": error, "keys": keys}
        raise PydanticCustomError("nested", "{count} errors", context) from None

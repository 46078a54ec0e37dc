"""Lazy tables of names: `name -> "module:object"`, extended by plugins through entry points."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from synthe_core.errors import unknown


@cache
def _installed() -> Any:
    """The entry points of all packages: a file of each is read, so once in a process."""
    return entry_points()


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
        plugins = {point.name: point.value for point in _installed().select(group=self.group)}
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

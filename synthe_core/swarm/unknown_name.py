"""The error for a name that nothing in the swarm has, which a server answers with 404."""

from __future__ import annotations

from collections.abc import Iterable

from synthe_core.errors import unknown
from synthe_core.inference.request import NotFound


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> NotFound:
    """As `errors.unknown`, with the nearest name as the hint."""
    error = unknown(kind, name, choices)
    return NotFound(error.message, error.hint)

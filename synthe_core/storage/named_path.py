"""Options of the form NAME=PATH, of which the path may have an equals sign itself."""

from __future__ import annotations

from pathlib import Path


def split_named(text: str) -> tuple[str | None, Path]:
    """Name and path of `NAME=PATH`. The name is None where a path stands alone: where it exists as it is written, or
    has a slash before the equals sign, which names do not have."""
    whole = Path(text).expanduser()
    name, equals, rest = text.partition("=")
    if not equals or "/" in name or whole.exists():
        return None, whole
    return name, Path(rest).expanduser()

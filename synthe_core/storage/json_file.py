"""The JSON mappings that models come with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that a file holds; InputError where it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}", "copy it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is no JSON mapping", "copy it again")
    return values

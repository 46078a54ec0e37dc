"""What every script of a client has in common. It runs in the client's environment: `python script.py URL`."""

from __future__ import annotations

import json
import sys
from typing import Any

URL = f"{sys.argv[1]}/v1" if len(sys.argv) > 1 else ""
MODEL = "chatty"
KEY = "none"
SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bern", "Lima"]},
        "size": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["city", "size"],
}


def check_shape(value: Any) -> None:
    """Holds a value, or its JSON, to `SHAPE`."""
    value = json.loads(value) if isinstance(value, str) else value
    assert set(value) == {"city", "size"}, value
    assert value["city"] in ("Bern", "Lima") and value["size"] in (1, 2, 3), value


def check_unit(vector: Any) -> None:
    assert abs(sum(x * x for x in vector) - 1) < 1e-4, vector


def refused(kind: type[Exception] | tuple[type[Exception], ...], text: str, call: Any) -> None:
    """Holds `call` to an error that says `text`."""
    try:
        call()
    except kind as error:
        assert text in str(error), error
        return
    raise AssertionError(f"not refused: {text}")

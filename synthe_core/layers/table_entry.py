"""How an entry of a recipe becomes the configuration of an object of a table."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from synthe_core.errors import InputError
from synthe_core.registry import Table


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

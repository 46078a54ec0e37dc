"""The JSON Schema of a call: one of several functions, with arguments by its own schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from synthe_core.data.tool_calls.format import ToolFormat

MAX_CALLS_IN_LIST = 16
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class FunctionSchema(NamedTuple):
    """A function's name and the JSON Schema of its arguments, an object."""

    name: str
    parameters: Mapping[str, Any]


def call_schema(form: ToolFormat, functions: Sequence[FunctionSchema], *, parallel: bool) -> dict[str, Any]:
    """What a call of one of `functions` obeys, or a list of such calls where the format has one.

    Each function's schema is a definition of its own, to which its references lead.
    """
    definitions = {f"tool{i}": _moved(each.parameters, f"#/$defs/tool{i}") for i, each in enumerate(functions)}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": each.name}, form.arguments: {"$ref": f"#/$defs/tool{i}"}},
            "required": ["name", form.arguments],
            "additionalProperties": False,
        }
        for i, each in enumerate(functions)
    ]
    call: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if form.in_list:
        call = {"type": "array", "items": call, "minItems": 1, "maxItems": MAX_CALLS_IN_LIST if parallel else 1}
    return {**call, "$defs": definitions}


def _moved(schema: Any, place: str) -> Any:
    """The schema with references to itself as they are where it stands at `place` of another."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: place + value[1:]
        if key in REFERENCES and isinstance(value, str) and (value == "#" or value.startswith("#/"))
        else _moved(value, place)
        for key, value in schema.items()
    }

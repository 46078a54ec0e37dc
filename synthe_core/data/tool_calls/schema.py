"""The JSON Schema of a call: one of several functions, with arguments by its own schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from synthe_core.data.tool_calls.format import ToolFormat

MAX_CALLS_IN_LIST = 16
MAX_REFERENCES = 16
"""References that lead to each other."""
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


def functions_of(schema: Mapping[str, Any]) -> list[FunctionSchema]:
    """The functions of what `call_schema` has made; references of number i lead from its `root_of`."""
    call = schema.get("items", schema)
    calls = call.get("anyOf", [call])
    return [
        FunctionSchema(each["properties"]["name"]["const"], schema["$defs"][f"tool{i}"]) for i, each in enumerate(calls)
    ]


def root_of(number: int, function: FunctionSchema) -> dict[str, Any]:
    """The schema in which the references of function number `number` are resolved."""
    return {"$defs": {f"tool{number}": function.parameters}}


def resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema that may be a reference, as what it refers to in `root`; what leads nowhere or in a circle as {}."""
    for _ in range(MAX_REFERENCES):
        if "$ref" not in schema:
            return schema
        place: Any = root
        for part in str(schema["$ref"]).removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            place = place.get(key) if isinstance(place, Mapping) else None
        schema = place if isinstance(place, Mapping) else {}
    return {}


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

"""JSON Schema as tables of keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from docs.generate.markdown import cell, table

Schema = Mapping[str, Any]

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def reference_name(schema: Schema) -> str | None:
    """The name of the definition that a `$ref` leads to."""
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def _short(name: str) -> str:
    """A class's own name, where the definition's has its module before it."""
    return name.rpartition("__")[0].rpartition("__")[2] or name


def type_text(schema: Schema, pages: Mapping[str, str]) -> str:
    """The type of a value as Markdown. `pages` says where a definition is described: name -> link."""
    if name := reference_name(schema):
        return f"[{_short(name)}]({pages[name]})" if name in pages else f"`{name}`"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            kinds = [type_text(each, pages) for each in schema[union]]
            return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return _array(schema, pages)
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to {type_text(inner, pages)}" if isinstance(inner, dict) and inner else "mapping"
    bounds = [f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema]
    return cell(" ".join([NAMES.get(schema.get("type", ""), "any"), ", ".join(bounds)]).strip())


def _array(schema: Schema, pages: Mapping[str, str]) -> str:
    if "prefixItems" in schema:
        return cell("[") + ", ".join(type_text(each, pages) for each in schema["prefixItems"]) + cell("]")
    return f"list of {type_text(schema.get('items', {}), pages)}"


def default_text(name: str, schema: Schema, required: bool) -> str:
    """The default of a key; nested defaults are described where the nested keys are."""
    if required:
        return "required"
    value = schema.get("default")
    nested = value if isinstance(value, list) else [value]
    if any(isinstance(each, dict) and each for each in nested):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`" if "default" in schema else ""


def keys(schema: Schema, pages: Mapping[str, str], without: tuple[str, ...] = ()) -> str:
    """A table of an object's keys: name, type, default, meaning."""
    required = schema.get("required", [])
    rows = [
        [f"`{name}`", type_text(value, pages), default_text(name, value, name in required), cell(_meaning(value))]
        for name, value in schema.get("properties", {}).items()
        if name not in without
    ]
    return table(["key", "type", "default", "meaning"], rows) if rows else "No keys.\n"


def _meaning(schema: Schema) -> str:
    return str(schema.get("description", "")) if "$ref" not in schema or "description" in schema else ""

"""Grammars of calls that are not JSON as a whole, in llguidance's form of Lark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from synthe_core.data.tool_calls.format import ToolFormat
from synthe_core.data.tool_calls.schema import MAX_CALLS_IN_LIST, FunctionSchema, functions_of, resolved, root_of
from synthe_core.errors import InputError

COMBINING = ("anyOf", "oneOf", "allOf", "not", "if", "minProperties", "maxProperties", "patternProperties")
"""Keys of an object's schema that its properties alone do not express."""
ANY_TEXT = "(?s:.{%d,%s})"


def call_grammar(form: ToolFormat, schema: Mapping[str, Any], *, parallel: bool, layout: Mapping[str, Any]) -> str:
    """The grammar of a call of one of the functions of `schema`, or of a list of calls.

    form: of the style `xml` or `pythonic`. layout: llguidance's options for the JSON of arguments.

    InputError for a function whose arguments cannot be written by their properties alone.
    """
    functions = functions_of(schema)
    rules = [f"call: {' | '.join(f'f{i}' for i in range(len(functions)))}"]
    for i, each in enumerate(functions):
        rules += (_XML if form.style == "xml" else _Pythonic)(i, each, layout).rules()
    if not form.in_list:
        return "\n".join(["start: call", *rules])
    more = f'(", " call){{0,{MAX_CALLS_IN_LIST - 1}}}' if parallel else ""
    return "\n".join([f'start: "[" call {more} "]"', *rules])


def properties_of(function: FunctionSchema) -> dict[str, Mapping[str, Any]]:
    """The schemas of a function's arguments, by name. InputError for an object that is not described by them alone."""
    schema = function.parameters
    unclear = [key for key in COMBINING if key in schema]
    if unclear or "$ref" in schema:
        raise InputError(
            f"the parameters of {function.name} have {(*unclear, '$ref')[0]}, which this model's calls cannot express",
            "list the arguments under properties",
        )
    return {name: each if isinstance(each, Mapping) else {} for name, each in schema.get("properties", {}).items()}


def is_plain_text(schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    """Whether an argument in XML is text as it is, rather than JSON: a string without a pattern or format."""
    schema = resolved(schema, root)
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if options is not None:
        return bool(options) and all(isinstance(each, str) for each in options)
    return schema.get("type") == "string" and not any(key in schema for key in ("pattern", "format", *COMBINING))


class _Rules:
    """The rules of one function, whose arguments stand in the order of its properties."""

    def __init__(self, number: int, function: FunctionSchema, layout: Mapping[str, Any]) -> None:
        self.layout = layout
        self.number, self.prefix, self.function = number, f"f{number}", function
        self.root = root_of(number, function)
        self.properties = properties_of(function)
        self.required = set(function.parameters.get("required", ()))

    def json(self, name: str) -> str:
        """JSON of an argument."""
        place = name.replace("~", "~0").replace("/", "~1")
        return self.json_of({"$ref": f"#/$defs/tool{self.number}/properties/{place}"})

    def json_of(self, schema: Mapping[str, Any]) -> str:
        return f"%json {json.dumps({**schema, **self.root, 'x-guidance': self.layout})}"


class _XML(_Rules):
    """`<function=name>`, its parameters, each between tags on lines of their own, and `</function>`."""

    def rules(self) -> Iterator[str]:
        parts = [f"{self.prefix}p{i}{'' if name in self.required else '?'}" for i, name in enumerate(self.properties)]
        begin, end = _quoted(f"<function={self.function.name}>\n"), _quoted("</function>")
        yield f"{self.prefix}: {begin} {' '.join(parts)} {end}"
        for i, (name, schema) in enumerate(self.properties.items()):
            rule, begin = f"{self.prefix}p{i}", _quoted(f"<parameter={name}>\n")
            if not is_plain_text(schema, self.root):
                yield f"{rule}: {begin} {self.json(name)} {_quoted(END_PARAMETER)}"
                continue
            schema = resolved(schema, self.root)
            options = schema.get("enum", [schema["const"]] if "const" in schema else None)
            if options is not None:
                yield f"{rule}: {begin} ({' | '.join(map(_quoted, options))}) {_quoted(END_PARAMETER)}"
                continue
            bounds = ANY_TEXT % (schema.get("minLength", 0), schema.get("maxLength", ""))
            yield f"{rule}: {begin} {rule}text"
            yield f"{rule}text[suffix={_quoted(END_PARAMETER)}]: /{bounds}/"


class _Pythonic(_Rules):
    """`name(a=1, b="x")`; the constants at the top of an argument are Python's, other values JSON."""

    def rules(self) -> Iterator[str]:
        yield f"{self.prefix}: {_quoted(self.function.name + '(')} {self.prefix}first0 {_quoted(')')}"
        for i, name in enumerate(self.properties):
            after, value = f"{self.prefix}rest{i + 1}", f"{_quoted(name + '=')} {self.prefix}value{i}"
            skipped = name not in self.required
            yield f"{self.prefix}first{i}: {value} {after}" + (f" | {self.prefix}first{i + 1}" if skipped else "")
            yield f'{self.prefix}rest{i}: ", " {value} {after}' + (f" | {after}" if skipped else "")
            yield f"{self.prefix}value{i}: {self._value(name)}"
        for kind in ("first", "rest"):
            yield f'{self.prefix}{kind}{len(self.properties)}: ""'

    def _value(self, name: str) -> str:
        schema = resolved(self.properties[name], self.root)
        kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", ())
        if "enum" in schema or "const" in schema or not kinds or any(key in schema for key in COMBINING):
            return self.json(name)
        constants = [_quoted(text) for kind in kinds for text in CONSTANTS.get(kind, ())]
        others = [kind for kind in kinds if kind not in CONSTANTS]
        if not constants:
            return self.json(name)
        if others:
            constants.append(self.json_of({**schema, "type": others}))
        return " | ".join(constants)


CONSTANTS = {"boolean": ("True", "False"), "null": ("None",)}
END_PARAMETER = "\n</parameter>\n"


def _quoted(text: str) -> str:
    """A text as a string of the grammar."""
    return json.dumps(text)

"""Tools in a request: what clients write, and what the engine gets of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from synthe_core.data.tool_calls.format import ToolFormat
from synthe_core.data.tool_calls.schema import FunctionSchema, call_schema
from synthe_core.errors import closest
from synthe_core.inference.request import ToolUse
from synthe_core.serving.api.body import IGNORED, Body, field_error
from synthe_core.serving.api.closed_objects import closed

MAX_TOOLS = 128
LONGEST_PARAMETERS = 50_000
LONGEST_TOOLS = 200_000
SAYS_PROPERTIES = ("additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf", "minProperties")
"""Keys of a schema without `properties` whose object may have some all the same."""
FunctionName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Function(Body):
    NEUTRAL: ClassVar = {"returns": IGNORED, "return": IGNORED, "response": IGNORED}
    SYNONYMS: ClassVar = {"arguments": "parameters", "schema": "parameters", "input_schema": "parameters"}

    name: FunctionName
    description: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    parameters: dict[str, Any] | None = Field(
        None, description=f"JSON Schema of the arguments, an object, of at most {LONGEST_PARAMETERS:,} characters"
    )
    strict: bool | None = Field(None, description="no effect: arguments always obey the schema")

    @model_validator(mode="after")
    def _an_object(self) -> Self:
        schema = self.parameters or {}
        if len(json.dumps(schema)) > LONGEST_PARAMETERS:
            raise field_error("parameters", f"the schema has more than {LONGEST_PARAMETERS:,} characters")
        if schema.get("type", "object") != "object":
            raise field_error("parameters", "arguments are an object: the schema's type must be object")
        return self

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """Without parameters, the empty object."""
        schema = {"type": "object", **(self.parameters or {})}
        if not schema.get("properties") and not any(key in schema for key in SAYS_PROPERTIES):
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return schema


class Tool(Body):
    NEUTRAL: ClassVar = {"cache_control": IGNORED, "defer_loading": IGNORED}

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: FunctionName


class NamedChoice(Body):
    type: Literal["function"]
    function: NamedFunction


class Allowed(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedChoice] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: Allowed


ToolChoice = (
    Literal["none", "auto", "required"] | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")] | None
)


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class ToolBody(Body):
    """The fields about tools, of chats."""

    tools: Tools | None = Field(None, description="functions that the model may call")
    tool_choice: ToolChoice = Field(
        None, description="auto by default; required, or a function: the answer is a call; none: it has none"
    )
    parallel_tool_calls: bool | None = Field(None, description="whether an answer may have several calls; true")

    @model_validator(mode="after")
    def _choice_among_tools(self) -> Self:
        check_tools(self.tools or ())
        if self.tools:  # without, the server's own may be chosen
            try:
                check_choice(self.tool_choice, [tool.function.name for tool in self.tools])
            except ValueError as error:
                raise field_error("tool_choice", str(error)) from None
        return self


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises the error of tools that are too many characters, or have the same name."""
    names: set[str] = set()
    for number, tool in enumerate(tools):
        if tool.function.name in names:
            raise field_error(f"tools[{number}].function.name", "another function has this name")
        names.add(tool.function.name)
    if sum(len(json.dumps(tool.function.parameters or {})) for tool in tools) > LONGEST_TOOLS:
        raise field_error("tools", f"the schemas have more than {LONGEST_TOOLS:,} characters together")


def check_choice(choice: ToolChoice, names: Sequence[str]) -> None:
    """Raises ValueError for a choice that none of the tools of these names is."""
    if not names and choice not in (None, "none", "auto"):
        raise ValueError("there are no tools to choose from")
    for name in chosen_names(choice) or ():
        if name not in names:
            near = closest(name[:80], list(names))
            raise ValueError("no tool has that name" + (f" (did you mean {near!r}?)" if near else ""))


def chosen_names(choice: ToolChoice) -> list[str] | None:
    """The functions that a choice names; None for all."""
    match choice:
        case NamedChoice(function=function):
            return [function.name]
        case AllowedChoice(allowed_tools=allowed):
            return [each.function.name for each in allowed.tools]
    return None


def is_required(choice: ToolChoice) -> bool:
    """Whether an answer must be a call."""
    match choice:
        case NamedChoice():
            return True
        case AllowedChoice(allowed_tools=allowed):
            return allowed.mode == "required"
    return choice == "required"


def tool_use(
    body: ToolBody, form: ToolFormat, text: Mapping[str, Any] | None = None, *, open_objects: bool = False
) -> ToolUse | None:
    """The calls that an answer may have; None for none. text: the JSON Schema of an answer that is no call."""
    if not body.tools or body.tool_choice == "none":
        return None
    names = chosen_names(body.tool_choice)
    functions = [
        FunctionSchema(each.function.name, _schema(each.function, open_objects=open_objects))
        for each in body.tools
        if names is None or each.function.name in names
    ]
    parallel = body.parallel_tool_calls is not False
    schema = call_schema(form, functions, parallel=parallel)
    return ToolUse(form, schema, is_required(body.tool_choice), parallel, text)


def _schema(function: Function, *, open_objects: bool) -> Mapping[str, Any]:
    schema = function.schema_of_arguments
    return schema if open_objects else closed(schema)


def described(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as chat templates read them."""
    return [tool.model_dump(exclude_none=True) for tool in tools]

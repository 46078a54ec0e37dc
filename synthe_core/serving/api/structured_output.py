"""What an answer obeys: `response_format`, vLLM's `structured_outputs` and `guided_*`, as one schema or grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import from_json

from synthe_core.inference.request import Grammar
from synthe_core.serving.api.body import IGNORED, Body, Text, field_error, only

LONGEST_SCHEMA = 50_000
MAX_CHOICES = 1024
GrammarText = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_SCHEMA)]
Choices = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=1000)]],
    Field(min_length=1, max_length=MAX_CHOICES),
]


def _as_object(schema: Any) -> Any:
    """A schema, which vLLM takes as text too."""
    if isinstance(schema, str) and len(schema) <= LONGEST_SCHEMA:
        try:
            return from_json(schema)
        except ValueError:
            return schema
    return schema


JsonSchema = Annotated[
    dict[str, Any],
    BeforeValidator(_as_object, json_schema_input_type=dict[str, Any] | str),
    Field(description=f"a JSON Schema of at most {LONGEST_SCHEMA:,} characters"),
]


def _check_size(name: str, schema: Mapping[str, Any] | None) -> None:
    if schema is not None and len(json.dumps(schema)) > LONGEST_SCHEMA:
        raise field_error(name, f"the schema has more than {LONGEST_SCHEMA:,} characters")


class Schema(Body):
    name: Text | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema", description=f"at most {LONGEST_SCHEMA:,} characters")
    strict: bool | None = None

    @model_validator(mode="after")
    def _short(self) -> Self:
        _check_size("schema", self.schema_)
        return self


class AsText(Body):
    type: Literal["text"]


class AsObject(Body):
    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="what the object obeys; any object by default"
    )

    @model_validator(mode="after")
    def _short(self) -> Self:
        _check_size("schema", self.schema_)
        return self


class AsSchema(Body):
    type: Literal["json_schema"]
    json_schema: Schema


ResponseType = Annotated[AsText | AsObject | AsSchema, Field(discriminator="type")]


class StructuredOutputs(Body):
    """vLLM's field of this name."""

    NEUTRAL: ClassVar = {
        "disable_any_whitespace": IGNORED,
        "disable_fallback": IGNORED,
        "disable_additional_properties": IGNORED,
        "whitespace_pattern": only(reason="not supported: JSON has one space after commas and colons"),
        "structural_tag": only(reason="not supported; use grammar"),
    }
    SYNONYMS: ClassVar = {"json_schema": "json", "schema": "json", "guided_json": "json", "choices": "choice"}

    json_: JsonSchema | None = Field(None, alias="json")
    json_object: bool | None = Field(None, description="any JSON object")
    regex: GrammarText | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = Field(None, description="a grammar in the form of Lark or GBNF")

    @model_validator(mode="after")
    def _short(self) -> Self:
        _check_size("json", self.json_)
        return self


class StructuredBody(Body):
    """The fields that say what an answer obeys. One of them may be given."""

    response_format: ResponseType | None = Field(None, description="text, any JSON object, or JSON by a schema")
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: GrammarText | None = Field(None, description="a regular expression that the whole text matches")
    guided_choice: Choices | None = Field(None, description="the text is one of these")
    guided_grammar: GrammarText | None = Field(None, description="a grammar in the form of Lark or GBNF")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        _check_size("guided_json", self.guided_json)
        forms = self._forms()
        if len(forms) > 1:
            raise field_error(forms[1][0], f"cannot be combined with {forms[0][0]}")
        return self

    def _forms(self) -> list[tuple[str, Mapping[str, Any] | Grammar]]:
        """(field, schema or grammar) of each that is given."""
        forms: list[tuple[str, Mapping[str, Any] | Grammar]] = []
        match self.response_format:
            case AsObject(schema_=schema):
                forms.append(("response_format", _any_object(schema)))
            case AsSchema(json_schema=schema):
                forms.append(("response_format", schema.schema_))
        if given := self.structured_outputs:
            if given.json_object:
                forms.append(("structured_outputs.json_object", _any_object(None)))
            forms += _given("structured_outputs.", given.json_, given.regex, given.choice, given.grammar)
        return forms + _given("guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)

    @property
    def response_schema(self) -> Mapping[str, Any] | None:
        """The JSON Schema of the text."""
        return next((form for _, form in self._forms() if not isinstance(form, Grammar)), None)

    @property
    def grammar(self) -> Grammar | None:
        """The grammar of the text, where it has no schema."""
        return next((form for _, form in self._forms() if isinstance(form, Grammar)), None)


def _any_object(schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return schema or {"type": "object"}


def _given(
    prefix: str, schema: Mapping[str, Any] | None, regex: str | None, choice: list[str] | None, grammar: str | None
) -> list[tuple[str, Mapping[str, Any] | Grammar]]:
    forms: list[tuple[str, Mapping[str, Any] | Grammar]] = []
    if schema is not None:
        forms.append((f"{prefix}json", schema))
    if regex is not None:
        forms.append((f"{prefix}regex", Grammar("regex", regex)))
    if choice is not None:
        forms.append((f"{prefix}choice", Grammar("choice", json.dumps(choice))))
    if grammar is not None:
        forms.append((f"{prefix}grammar", Grammar("grammar", grammar)))
    return forms

"""The base of every body: unknown fields are errors, null counts as absent, and some fields have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from synthe_core.errors import closest
from synthe_core.inference import session_store


def _whole(value: Any) -> Any:
    """1.0 is an integer in JSON, which has one type of numbers."""
    return int(value) if type(value) is float and value.is_integer() else value


def _wholes(value: Any) -> Any:
    return [_whole(each) for each in value] if isinstance(value, list) else value


Int = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, StringConstraints(max_length=1000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
SESSION = f"^{session_store.NAME.pattern}$"
SessionId = Annotated[str, StringConstraints(pattern=SESSION)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1), BeforeValidator(_wholes)]
TokenList = Annotated[list[Token], BeforeValidator(_wholes)]


class Neutral(NamedTuple):
    """A field that has no effect. values: those it may have, None for any. reason: what is said of another value."""

    values: tuple[Any, ...] | None
    reason: str

    def allows(self, value: Any) -> bool:
        """Whether a request may have this value; true is no number."""
        if self.values is None:
            return True
        return any(each == value and isinstance(each, bool) == isinstance(value, bool) for each in self.values)

    def schema(self) -> dict[str, Any]:
        """Its JSON Schema."""
        if self.values is None:
            return {"description": "ignored", "default": None}
        return {"description": self.reason, "enum": [*self.values, None], "default": None}


IGNORED = Neutral(None, "ignored")


def only(*values: Any, reason: str) -> Neutral:
    """A field that may have these values alone, beside null."""
    return Neutral(values, reason)


def field_error(name: str, message: str) -> PydanticCustomError:
    """The error of one field, or part, of the body that is being validated."""
    return PydanticCustomError("field_error", "{message}", {"name": name, "message": message})


def _fail_fast(schema: Any) -> None:
    """Marks every list of a core schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for inner in schema.values():
            _fail_fast(inner)
    elif isinstance(schema, (list, tuple)):
        for inner in schema:
            _fail_fast(inner)


class Body(BaseModel):
    """Every list is validated up to its first error: a million items must not make a million errors.

    NEUTRAL: the fields without effect. SYNONYMS: what clients of other servers call a field, and its name here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    NEUTRAL: ClassVar[Mapping[str, Neutral]] = {}
    SYNONYMS: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        """The fields that have an effect. Raises for unknown ones, and for a value that would have an effect."""
        if not isinstance(data, dict):
            return data
        names = {field.alias or name for name, field in cls.model_fields.items()}
        known: dict[str, Any] = {}
        for name, value in data.items():
            if value is None:
                continue
            if name in names:
                known[name] = value
            elif (neutral := cls.NEUTRAL.get(name)) is None:
                near = cls.SYNONYMS.get(name) or closest(name[:100], [*names, *cls.NEUTRAL])
                raise PydanticCustomError("unknown_field", "unknown field", {"name": name, "near": near})
            elif not neutral.allows(value):
                raise field_error(name, neutral.reason)
        return known

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        schema = handler(source)
        _fail_fast(schema)
        return schema

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        body.setdefault("properties", {}).update({name: each.schema() for name, each in cls.NEUTRAL.items()})
        body["additionalProperties"] = {"type": "null"}
        return schema

"""Bodies of requests. Unknown fields and numbers out of range are errors."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    model_validator,
)

from synthe_core.inference import session_store


def _whole(value: Any) -> Any:
    """1.0 is an integer in JSON, which has one type of numbers."""
    return int(value) if type(value) is float and value.is_integer() else value


def _wholes(value: Any) -> Any:
    return [_whole(each) for each in value] if isinstance(value, list) else value


LONGEST_SCHEMA = 50_000
Int = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, StringConstraints(max_length=1000)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""An adapter's name; `$` is the very end here, as in JSON Schema."""
SESSION = f"^{session_store.NAME.pattern}$"
SessionId = Annotated[str, StringConstraints(pattern=SESSION)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1), BeforeValidator(_wholes)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")], Bias], Field(max_length=1024)]


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
    """Every list of a body is validated up to its first error: a million items must not make a million errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        schema = handler(source)
        _fail_fast(schema)
        return schema


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="send the usage in a last chunk")


class GenerationBody(Body):
    """Fields of completions and chats. A null field counts as absent."""

    model: Name = Field(description="a name of /v1/models, `base:adapter` for a base with an adapter")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; 1 by default")
    top_p: float | None = Field(
        None, gt=0, le=1, description="sample from the smallest set of tokens whose probability is at least p"
    )
    top_k: Int | None = Field(
        None, ge=-1, lt=2**31, description="sample from the k most likely tokens; 0 and -1 turn it off"
    )
    min_p: float | None = Field(
        None, ge=0, lt=1, description="drop tokens less likely than this share of the most likely one"
    )
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Biases | None = Field(None, description="values from -100 to 100 that are added to logits, by token id")
    n: Int | None = Field(None, ge=1, le=128, description="choices per prompt; choice i is sampled with seed + i")
    seed: Int | None = Field(
        None, ge=-(2**63), lt=2**63, description="the same seed gives the same text; random by default"
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = Field(
        None, description="a text or up to 16 texts, none empty; the output stops before them"
    )
    ignore_eos: bool | None = Field(None, description="continue after the end token")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    session: SessionId | None = Field(None, description="continue this conversation, and save it")
    confidence: bool | None = Field(None, description="return the model's confidence with each delta")
    user: Text | None = Field(None, description="ignored")
    metadata: dict[str, Any] | None = Field(None, description="ignored")
    store: bool | None = Field(None, description="ignored: nothing is stored")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only if stream is true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class Completion(GenerationBody):
    prompt: Annotated[
        str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)],
        Field(description="a text, a list of texts, a list of tokens or a list of lists of tokens, none of them empty"),
    ]
    max_tokens: Int | None = Field(None, ge=0, lt=2**31, description="16 by default")
    echo: bool | None = Field(None, description="return the prompt before the text, with its logprobs if requested")
    logprobs: Int | None = Field(None, ge=0, le=20, description="number of most likely tokens to return")
    suffix: None = Field(None, description="not supported")
    best_of: Literal[1] | None = Field(None, description="not supported")


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Text | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Schema(Body):
    name: Text | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema", description=f"at most {LONGEST_SCHEMA:,} characters")
    strict: bool | None = None

    @model_validator(mode="after")
    def _short(self) -> Self:
        if len(json.dumps(self.schema_)) > LONGEST_SCHEMA:
            raise ValueError(f"response_format: the schema has more than {LONGEST_SCHEMA:,} characters")
        return self


class AsText(Body):
    type: Literal["text"]


class AsObject(Body):
    type: Literal["json_object"]


class AsSchema(Body):
    type: Literal["json_schema"]
    json_schema: Schema


class Chat(GenerationBody):
    messages: list[Message] = Field(min_length=1, description="with a session, the new ones only")
    max_completion_tokens: Int | None = Field(None, ge=0, lt=2**31, description="the server's maximum by default")
    max_tokens: Int | None = Field(None, ge=0, lt=2**31, description="former name of max_completion_tokens")
    logprobs: bool | None = None
    top_logprobs: Int | None = Field(None, ge=0, le=20)
    response_format: Annotated[AsText | AsObject | AsSchema, Field(discriminator="type")] | None = Field(
        None, description="text, any JSON object, or JSON by a schema"
    )

    @model_validator(mode="after")
    def _with_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only if logprobs is true")
        return self

    @property
    def response_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the output."""
        match self.response_format:
            case AsObject():
                return {"type": "object"}
            case AsSchema(json_schema=schema):
                return schema.schema_
        return None


class Embedding(Body):
    model: Name
    input: Annotated[
        str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)],
        Field(description="a text, a list of texts, a list of tokens or a list of lists of tokens, none of them empty"),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int | None = Field(None, ge=1, lt=2**31, description="only the model's width is supported")
    user: Text | None = Field(None, description="ignored")


class Tokenize(Body):
    model: Name | None = Field(None, description="the first served model by default")
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = Field(None, description="add the begin token; true by default")
    add_generation_prompt: bool | None = Field(None, description="add the start of the reply; true by default")
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class Detokenize(Body):
    model: Name | None = Field(None, description="the first served model by default")
    tokens: Annotated[list[Token], BeforeValidator(_wholes)]


class Introspect(Body):
    model: Name
    text: str | None = Field(None, description="text to inspect; the last request of the model by default")


class Fork(Body):
    to: SessionId = Field(description="name of the copy")


class AdapterLoad(Body):
    model: Name = Field(description="the base model")
    name: Annotated[str, StringConstraints(pattern=NAME)] = Field(
        description="name of the adapter; requests use `base:name`"
    )
    path: Name = Field(description="name of an entry in a folder of --adapters")

"""The body of /v1/responses, and the chat that it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError
from pydantic_core import PydanticCustomError

from synthe_core.serving.api import bodies, neutral_fields
from synthe_core.serving.api.body import IGNORED, Body, Int, Name, Text, only
from synthe_core.serving.api.errors import HttpError, invalid
from synthe_core.serving.api.messages import PARTS_TAG, TEXT_TAG, tag_of
from synthe_core.serving.api.tools import MAX_TOOLS, Function, FunctionName


class InputPart(Body):
    NEUTRAL: ClassVar = {"annotations": IGNORED, "logprobs": IGNORED, "cache_control": IGNORED}

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class InputMessage(Body):
    NEUTRAL: ClassVar = {"id": IGNORED, "status": IGNORED, "phase": IGNORED}

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputPart]


class InputCall(Body):
    NEUTRAL: ClassVar = {"id": IGNORED, "status": IGNORED}

    type: Literal["function_call"]
    call_id: Name
    name: FunctionName
    arguments: str


class InputResult(Body):
    NEUTRAL: ClassVar = {"id": IGNORED, "status": IGNORED}

    type: Literal["function_call_output"]
    call_id: Name
    output: str | list[InputPart]


class InputServerCall(Body):
    """A call of a tool of the server, with its result, as an earlier response had it."""

    NEUTRAL: ClassVar = dict.fromkeys(("status", "server_label", "error", "approval_request_id"), IGNORED)

    type: Literal["mcp_call"]
    id: Name
    name: FunctionName
    arguments: str
    output: str | None = None


class InputReasoning(Body):
    NEUTRAL: ClassVar = dict.fromkeys(("id", "status", "summary", "content", "encrypted_content"), IGNORED)

    type: Literal["reasoning"]


def _typed(item: Any) -> Any:
    """A message, which may come without a type."""
    if isinstance(item, dict) and item.get("type") is None:
        return {**item, "type": "message"}
    kinds = ("message", "function_call", "function_call_output", "mcp_call", "reasoning")
    if isinstance(item, dict) and item["type"] not in kinds:
        raise PydanticCustomError(
            "unsupported_item", "this type of item is not supported; " + ", ".join(kinds) + " are"
        )
    return item


Item = Annotated[
    Annotated[InputMessage | InputCall | InputResult | InputServerCall | InputReasoning, Field(discriminator="type")],
    BeforeValidator(_typed),
]


Input = Annotated[
    Annotated[str, Tag(TEXT_TAG)] | Annotated[list[Item], Field(min_length=1), Tag(PARTS_TAG)],
    Discriminator(tag_of, custom_error_type="content", custom_error_message="expected a text or a list of items"),
]


class FlatTool(Function):
    """A function as /v1/responses has it."""

    NEUTRAL: ClassVar = {**Function.NEUTRAL, "defer_loading": IGNORED}

    type: Literal["function"]


class FlatChoice(Body):
    type: Literal["function"]
    name: FunctionName


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    NEUTRAL: ClassVar = {"verbosity": IGNORED}

    format: TextFormat | None = None


class CreateResponse(Body):
    NEUTRAL: ClassVar = {
        **{name: each for name, each in neutral_fields.ACCOUNTING.items() if name not in ("metadata", "store")},
        **dict.fromkeys(("include", "reasoning", "max_tool_calls", "stream_options", "top_logprobs"), IGNORED),
        "background": only(False, reason="not supported"),
        "truncation": only("disabled", reason="not supported; a prompt that is too long is an error"),
        "conversation": only(reason="not supported; use previous_response_id"),
        "prompt": only(reason="not supported; use input"),
    }
    SYNONYMS: ClassVar = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text"}

    model: Name
    input: Input = Field(description="a text, or a list of items")
    instructions: str | None = Field(None, description="the system message; of this response only")
    previous_response_id: Name | None = Field(None, description="the response that this one continues")
    tools: Annotated[list[FlatTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Annotated[Int, Field(ge=1, lt=2**31)] | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    text: TextOptions | None = Field(None, description="the format of the text: text, any JSON object, or a schema")
    stream: bool | None = None
    metadata: Annotated[dict[str, Text], Field(max_length=16)] | None = Field(None, description="returned as it is")
    store: bool | None = Field(None, description="whether it can be continued and fetched; true")
    seed: Int | None = Field(None, ge=-(2**63), lt=2**63)

    @property
    def items(self) -> Sequence[Body]:
        return [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input


def messages_of(items: Iterable[Body]) -> list[dict[str, Any]]:
    """The items as messages of a chat: calls join the message of the assistant before them."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case InputMessage(role=role, content=content):
                messages.append({"role": role, "content": _text(content)})
            case InputCall(call_id=call_id, name=name, arguments=arguments):
                _add_call(messages, call_id, name, arguments)
            case InputResult(call_id=call_id, output=output):
                messages.append({"role": "tool", "tool_call_id": call_id, "content": _text(output)})
            case InputServerCall(id=id, name=name, arguments=arguments, output=output):
                _add_call(messages, id, name, arguments)
                messages.append({"role": "tool", "tool_call_id": id, "content": output or ""})
    return messages


def _add_call(messages: list[dict[str, Any]], id: str, name: str, arguments: str) -> None:
    """Adds a call to the assistant's message at the end."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages[-1].setdefault("tool_calls", []).append(call)


def _text(content: str | list[InputPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text or part.refusal or "" for part in content)


def chat_body(body: CreateResponse, before: Sequence[Mapping[str, Any]]) -> bodies.Chat:
    """The chat whose next message is the response. before: the messages of the responses that it continues."""
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    values: dict[str, Any] = {
        "model": body.model,
        "messages": [*system, *before, *messages_of(body.items)],
        "max_completion_tokens": body.max_output_tokens,
        "tools": [_tool(each) for each in body.tools or ()],
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _format(body.text),
        **{name: getattr(body, name) for name in ("temperature", "top_p", "seed", "stream")},
    }
    if not values["messages"]:
        raise HttpError(400, "input: there is no message", param="input")
    try:
        return bodies.Chat.model_validate(values)
    except ValidationError as error:
        raise invalid(error, bodies.Chat) from None


def _tool(tool: FlatTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type"})}


def _choice(choice: str | FlatChoice | None) -> Any:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, FlatChoice) else choice


def _format(options: TextOptions | None) -> dict[str, Any] | None:
    if options is None or options.format is None:
        return None
    given = options.format
    if given.type != "json_schema":
        return {"type": given.type}
    return {"type": "json_schema", "json_schema": {"name": given.name, "schema": given.schema_ or {}}}

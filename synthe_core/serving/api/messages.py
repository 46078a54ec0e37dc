"""Messages of a conversation: what a client writes, and what servers gave it that it sends back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError, from_json

from synthe_core.errors import closest
from synthe_core.serving.api.body import IGNORED, Body, Text, field_error, only

LEGACY = "not supported; use tools"
MEDIA = ("image_url", "image", "input_image", "input_audio", "audio_url", "audio", "video_url", "video", "file")
MEDIA_AND_TOOLS = frozenset((*MEDIA, "input_file", "tool_use", "tool_result", "thinking"))
TEXT_TAG, PARTS_TAG = "content as text", "content as parts"


class TextPart(Body):
    NEUTRAL: ClassVar = {"cache_control": IGNORED, "annotations": IGNORED, "logprobs": IGNORED, "id": IGNORED}

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


def _supported(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind in ("text", "refusal"):
        return part
    if kind in MEDIA_AND_TOOLS:
        raise PydanticCustomError("unsupported_part", "{kind} is not supported", {"kind": kind})
    near = closest(kind[:50], ("text", *MEDIA))
    hint = " (did you mean 'text'?)" if near == "text" else " (text is)"
    raise PydanticCustomError("unsupported_part", "this type of part is not supported{hint}", {"hint": hint})


Part = Annotated[TextPart | RefusalPart, Field(discriminator="type"), BeforeValidator(_supported)]


def tag_of(content: Any) -> str | None:
    if isinstance(content, str):
        return TEXT_TAG
    return PARTS_TAG if isinstance(content, list) else None


Content = Annotated[
    Annotated[str, Tag(TEXT_TAG)] | Annotated[list[Part], Tag(PARTS_TAG)],
    Discriminator(tag_of, custom_error_type="content", custom_error_message="expected a text or a list of parts"),
]


def _role(role: Any) -> Any:
    if role == "function":
        raise PydanticCustomError("unsupported_role", "function messages: " + LEGACY)
    return role


class CalledFunction(Body):
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    arguments: str = Field("", description="a JSON object")

    @model_validator(mode="after")
    def _an_object(self) -> Self:
        if not isinstance(self.values, dict):
            raise field_error("arguments", "expected the text of a JSON object")
        return self

    @property
    def values(self) -> Any:
        try:
            return from_json(self.arguments) if self.arguments.strip() else {}
        except ValueError:
            return None


class MessageCall(Body):
    """A call that an answer had."""

    NEUTRAL: ClassVar = {"index": IGNORED, "status": IGNORED}

    id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    type: Literal["function"] = "function"
    function: CalledFunction

    def turn(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.values}
        return {"id": self.id, "type": "function", "function": function}


class Message(Body):
    """A message. Of a reply that is sent back, what is not its text has no effect."""

    NEUTRAL: ClassVar = {
        "function_call": only(reason=LEGACY),
        "audio": only(reason="audio is not supported"),
        "images": only([], reason="images are not supported"),
        "annotations": IGNORED,
        "cache_control": IGNORED,
        "id": IGNORED,
        "parsed": IGNORED,
        "provider_specific_fields": IGNORED,
        "reasoning_details": IGNORED,
        "thinking_blocks": IGNORED,
        "weight": IGNORED,
    }
    SYNONYMS: ClassVar = {"text": "content", "message": "content", "parts": "content"}

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_role)]
    content: Content | None = Field(
        None, description="a text or parts, which are joined by line breaks if the chat template reads none"
    )
    name: Text | None = Field(None, description="ignored")
    refusal: str | None = Field(None, description="the text of a message without content")
    tool_calls: Annotated[list[MessageCall], Field(max_length=128)] | None = Field(
        None, description="the calls of an answer of the assistant"
    )
    tool_call_id: Text | None = Field(None, description="of a tool message: the call whose result it is")
    reasoning_content: str | None = Field(None, description="given to the model's chat template")
    reasoning: str | None = Field(None, description="another name of reasoning_content")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise field_error("content", f"a message of the {self.role} needs one")
        if self.role == "tool" and self.tool_call_id is None:
            raise field_error("tool_call_id", "a message of the tool needs one: the id of the call")
        if self.tool_calls and self.role != "assistant":
            raise field_error("tool_calls", "only messages of the assistant have calls")
        return self

    def turn(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        content: Any = self.content or self.refusal or ""
        if isinstance(content, list):
            content = [{"type": "text", "text": part.text} for part in content]
        turn = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if reasoning := self.reasoning_content or self.reasoning:
            turn["reasoning_content"] = reasoning
        if self.tool_calls:
            turn["tool_calls"] = [call.turn() for call in self.tool_calls]
        if self.role == "tool":
            turn["tool_call_id"] = self.tool_call_id
        return turn


def check_results(messages: Sequence[Message]) -> None:
    """Raises the error of a tool message that is the result of no call before it."""
    ids: set[str] = set()
    for number, message in enumerate(messages):
        ids |= {call.id for call in message.tool_calls or ()}
        if message.role == "tool" and message.tool_call_id not in ids:
            place = f"messages[{number}].tool_call_id"
            raise field_error(place, "no call of a message before has this id")

"""Messages of stored conversations, in the form that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from synthe_core.data.json_stream import parse_row
from synthe_core.errors import InputError, closest

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""The roles of OpenAI's messages and of ShareGPT's conversations, as templates know them."""
CALL = "function_call"  # a turn of ShareGPT's that is the call itself
CALLS = ("tool_call", CALL)  # types of parts that are a call
REASONING = ("reasoning", "thinking", "reasoning_content")


def messages_of(value: Any, place: str) -> list[Message]:
    """A list of messages: OpenAI's ({role, content}) or ShareGPT's ({from, value}). InputError names what is wrong."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: a conversation is a list of messages, not {_kind(value)}")
    return [_message(each, f"{place}, message {number}") for number, each in enumerate(value, start=1)]


def message_of(value: Any, role: str, place: str) -> list[Message]:
    """An answer: a text, a message, or a list of messages."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return messages_of([value] if isinstance(value, dict) else value, place)


def tools_of(value: Any, place: str) -> list[Any] | None:
    """The tools of a conversation: a list, or JSON of one; None without any."""
    if isinstance(value, str):
        value = parse_row(value, f"{place}, tools") if value.strip() else None
    if value is not None and not isinstance(value, list):
        raise InputError(f"{place}: tools are a list, not {_kind(value)}")
    return value or None


def has_answer(message: Mapping[str, Any]) -> bool:
    """Whether a message is of the assistant and says or calls something."""
    return message["role"] == "assistant" and bool(plain_text(message["content"]).strip() or message.get("tool_calls"))


def check_answers(messages: Sequence[Message], place: str) -> None:
    """InputError for messages without an answer, or with an empty one."""
    answers = [each for each in messages if each["role"] == "assistant"]
    if not answers:
        raise InputError(f"{place}: there is no message of the assistant to train on")
    for number, each in enumerate(answers, start=1):
        if not has_answer(each):
            raise InputError(f"{place}: answer {number} of the assistant is empty", "leave the row out")


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise InputError(f"{place}: a message is an object with a role, not {_kind(value)}")
    named = "role" if "role" in value else "from"
    stated = value.get(named)
    if not isinstance(stated, str) or stated.lower() not in ROLES:
        near = closest(str(stated), ROLES)
        hint = f"did you mean '{near}'?" if near else f"roles are {', '.join(dict.fromkeys(ROLES.values()))}"
        raise InputError(f"{place}: {named} is {json.dumps(stated, ensure_ascii=False)[:80]}, which is no role", hint)
    role = ROLES[stated.lower()]
    if stated.lower() == CALL:
        return {"role": role, "content": "", "tool_calls": _calls(value.get("value"), place)}
    known = {name: part for name, part in value.items() if name not in ("from", "value", "text")}
    content = next((value[name] for name in ("content", "value", "text") if value.get(name) is not None), None)
    message: Message = {**known, "role": role, **_content(content, place)}
    return {name: part for name, part in message.items() if part is not None}


def _content(content: Any, place: str) -> Message:
    """The content of a message, a text or parts of text; with the reasoning and the calls that are among its parts."""
    if content is None or isinstance(content, str):
        return {"content": content or ""}
    if not isinstance(content, list):
        raise InputError(f"{place}: the content is a text or a list of parts, not {_kind(content)}")
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for number, part in enumerate(content, start=1):
        kind, value = _part(part)
        if kind in CALLS and value is not None:
            calls += _calls(value, f"{place}, part {number}")
        elif kind in ("text", *REASONING) and isinstance(value, str):
            (texts if kind == "text" else reasoning).append(value)
        else:
            raise InputError(
                f"{place}: part {number} is {json.dumps(kind)[:80]}, which is no text",
                "a language model reads text: leave the row out",
            )
    message: Message = {
        "content": texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts] or ""
    }
    if reasoning:
        message["reasoning_content"] = "\n".join(reasoning)
    return message | {"tool_calls": calls} if calls else message


def _part(part: Any) -> tuple[str | None, Any]:
    """The kind of a part, and what it holds."""
    if not isinstance(part, dict):
        return ("text", part) if isinstance(part, str) else (None, None)
    kind = part.get("type", "text")
    return kind, next((part[name] for name in ("text", "value", kind) if name in part), None)


def _calls(value: Any, place: str) -> list[dict[str, Any]]:
    """ShareGPT's call, JSON of one or several functions with arguments, as OpenAI's tool calls."""
    calls = parse_row(value, place) if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise InputError(f"{place}: a function_call is JSON with a name and arguments")
    functions = ({"name": call["name"], "arguments": call.get("arguments", {})} for call in calls)
    return [{"type": "function", "function": function} for function in functions]


def plain_text(content: Any) -> str:
    """The text of a message's content, a text or parts of text."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    return (
        "null"
        if value is None
        else {"dict": "an object", "str": "text", "bool": "true or false"}.get(type(value).__name__, "a number")
    )

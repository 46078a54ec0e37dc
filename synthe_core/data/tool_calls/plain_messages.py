"""Tools, calls and results as ordinary messages, for a chat template that knows none of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from synthe_core.data import chat_template
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.data.tool_calls.format import PLAIN, tool_format
from synthe_core.errors import InputError

Message = Mapping[str, Any]

INSTRUCTIONS = """\
You can call functions. Each is described by its JSON schema:
<tools>
{tools}
</tools>
To call one, write its name and arguments as JSON between these tags, and nothing after them:
<tool_call>
{{"name": "the name", "arguments": {{"an argument": "its value"}}}}
</tool_call>
You then get the result between <tool_response> tags."""
PROBE = "\N{OGHAM LETTER RUIS}" * 4


def for_template(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Any] | None
) -> tuple[list[Message], list[Any] | None]:
    """The messages and tools as the tokenizer's chat template reads them.

    Arguments are objects for templates, though OpenAI's messages have them as JSON text. For a template without tools,
    they stand in the system message, calls in the assistant's text and results in messages of the user. Templates that
    refuse a system message get it as the beginning of the first message of the user.
    """
    form = tool_format(tokenizer.chat_template)
    if form.native:
        return [_with_objects(message, form.id_size) for message in messages], list(tools) if tools else None
    if not tools and not any("tool_calls" in each or each["role"] == "tool" for each in messages):
        return list(messages), None
    plain = in_plain_messages(messages, tools or ())
    if plain and plain[0]["role"] == "system" and not _reads_system(tokenizer):
        plain = _without_system(plain)
    return plain, None


def in_plain_messages(messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
    """The messages with nothing but texts."""
    plain: list[Message] = []
    results: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(f"<tool_response>\n{text_of(message.get('content'))}\n</tool_response>")
            continue
        if results:
            plain.append({"role": "user", "content": "\n".join(results)})
            results = []
        plain.append(_with_calls_as_text(message))
    if results:
        plain.append({"role": "user", "content": "\n".join(results)})
    if not tools:
        return plain
    described = INSTRUCTIONS.format(
        tools="\n".join(json.dumps(as_function(each), ensure_ascii=False) for each in tools)
    )
    if plain and plain[0]["role"] == "system":
        content = f"{text_of(plain[0]['content'])}\n\n{described}"
        return [{**plain[0], "content": content}, *plain[1:]]
    return [{"role": "system", "content": described}, *plain]


def as_function(tool: Any) -> dict[str, Any]:
    """A tool in OpenAI's form: data sets have the function alone, too."""
    return dict(tool) if isinstance(tool, Mapping) and "function" in tool else {"type": "function", "function": tool}


def call_text(call: Mapping[str, Any]) -> str:
    """A call in the format PLAIN."""
    function = call.get("function", call)
    written = json.dumps(
        {"name": function["name"], "arguments": arguments_of(function.get("arguments"))}, ensure_ascii=False
    )
    return f"{PLAIN.opening}{written}{PLAIN.closing}"


def arguments_of(arguments: Any) -> Any:
    """The arguments of a call, which may be JSON text; text that is no JSON stays what it is."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments


def text_of(content: Any) -> str:
    """A content, which is a text or parts of text."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in content)


def _with_calls_as_text(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    texts = [text] if (text := text_of(message.get("content"))) else []
    content = "\n".join([*texts, *map(call_text, calls)])
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}


def _with_objects(message: Message, id_size: int) -> Message:
    """The message with arguments as objects, and ids of the length that the template demands."""
    if message.get("tool_call_id") and id_size:
        message = {**message, "tool_call_id": _fitting_id(message["tool_call_id"], id_size)}
    calls = message.get("tool_calls")
    if not calls:
        return message
    changed = []
    for call in calls:
        if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
            function = call["function"]
            call = {**call, "function": {**function, "arguments": arguments_of(function.get("arguments"))}}
            if id_size:
                call["id"] = _fitting_id(call.get("id") or "", id_size)
        changed.append(call)
    return {**message, "tool_calls": changed}


def _fitting_id(name: str, size: int) -> str:
    """The id itself if it fits, otherwise one of `size` letters and digits that is made of it."""
    return name if len(name) == size and name.isascii() and name.isalnum() else short_digest(name, size)


def short_digest(name: str, size: int) -> str:
    import hashlib

    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:size]


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The text of the system message at the beginning of the user's first one."""
    system, *rest = messages
    for place, each in enumerate(rest):
        if each["role"] == "user":
            content = f"{system['content']}\n\n{text_of(each['content'])}"
            return [*rest[:place], {**each, "content": content}, *rest[place + 1 :]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _reads_system(tokenizer: Tokenizer) -> bool:
    return tokenizer.chat_template is None or _template_reads_system(tokenizer.chat_template)


@lru_cache
def _template_reads_system(template: str) -> bool:
    """Whether a template writes a system message."""
    values: dict[str, Any] = {
        "messages": [{"role": "system", "content": PROBE}, {"role": "user", "content": "."}],
        "tools": None,
    }
    values |= {"documents": None, "add_generation_prompt": True, "bos_token": "", "eos_token": ""}
    try:
        return PROBE in chat_template.WORKERS.render(template, values)
    except InputError:
        return False

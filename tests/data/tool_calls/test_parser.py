"""Calls in the text of answers, however the text is cut into pieces."""

from __future__ import annotations

import json
import random

import pytest

from synthe_core.data.tool_calls.format import (
    HERMES,
    JSON,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    PLAIN,
    PYTHONIC,
    QWEN_XML,
    ToolFormat,
    tool_format,
)
from synthe_core.data.tool_calls.parser import CallPiece, TextPiece, ToolCallParser
from tests.data import template_families
from tests.data.templates import CHATML, GEMMA

ARGUMENTS = ['{"city": "Paris"}', "{}", '{"a": {"b": [1, {"c": "}]\\"{"}]}, "d": "</tool_call>"}', '{"x": "\\\\"}']


def read(form: ToolFormat, pieces: list[str], special: bool = False) -> tuple[str, list[tuple[str, str, bool]]]:
    """The text, and (name, arguments, complete) of each call."""
    parser = ToolCallParser(form)
    parts = parser.open() if special else []
    for piece in pieces:
        parts += parser.push(piece)
    parts += parser.flush()
    text = "".join(part.text for part in parts if isinstance(part, TextPiece))
    calls: dict[int, tuple[str, str, bool]] = {}
    for part in parts:
        if isinstance(part, CallPiece):
            name, arguments, _ = calls.get(part.index, ("", "", False))
            calls[part.index] = (part.name or name, arguments + part.arguments, part.complete)
    return text, list(calls.values())


def written(form: ToolFormat, names: list[str]) -> str:
    calls = [f'{{"name": {json.dumps(name)}, "{form.arguments}": {ARGUMENTS[i % 4]}}}' for i, name in enumerate(names)]
    if form.in_list:
        return f"[{', '.join(calls)}]"
    return form.opening + (form.closing + (form.between or "")).join(calls) + form.closing


@pytest.mark.parametrize("form", [HERMES, PLAIN, MISTRAL, LLAMA, JSON], ids=lambda form: form.name)
@pytest.mark.parametrize("seed", range(5))
def test_calls_are_read_from_any_pieces(form: ToolFormat, seed: int) -> None:
    names = ["f"] if form.between is None and not form.in_list else ["f", 'odd "na\\me"/', "größe", "f"]
    text = written(form, names)
    draw = random.Random(seed)
    cuts = sorted(draw.choices(range(len(text) + 1), k=draw.choice([0, 3, len(text)])))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    content, calls = read(form, pieces, special=form is MISTRAL)
    assert content == ""
    assert calls == [(name, ARGUMENTS[i % 4], True) for i, name in enumerate(names)]


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_text_before_a_call_is_text(size: int) -> None:
    text = f"a < b, <tool, <tool_calls>\n{written(HERMES, ['f'])}"
    content, calls = read(HERMES, [text[i : i + size] for i in range(0, len(text), size)])
    assert content == "a < b, <tool, <tool_calls>\n" and calls == [("f", ARGUMENTS[0], True)]


@pytest.mark.parametrize("form", [HERMES, LLAMA, JSON], ids=lambda form: form.name)
@pytest.mark.parametrize("text", ["", "Hello", "<tool_", " \n", '{"name', '{"answer": 1}', "{", 'see {"name": "f"'])
def test_text_without_a_call_is_unchanged(form: ToolFormat, text: str) -> None:
    assert read(form, list(text)) == (text, [])


def test_a_call_that_is_cut_is_not_complete() -> None:
    text = written(HERMES, ["f", "g"])
    for size in range(len("<tool_call>"), len(text) + 1):
        _, calls = read(HERMES, [text[:size]])
        assert all(arguments in ARGUMENTS for _, arguments, complete in calls if complete)
    assert [complete for *_, complete in read(HERMES, [text[: text.rindex("}")]])[1]] == [True, False]


def test_formats_are_recognized_by_their_templates() -> None:
    assert tool_format(template_families.CHATML_TOOLS) is HERMES
    assert tool_format(template_families.HEADERS) is LLAMA
    assert tool_format(template_families.INSTRUCTIONS) is MISTRAL
    assert {tool_format(each) for each in (None, CHATML, GEMMA)} == {PLAIN}
    calls = "{{ tools | tojson }}{% for call in message.tool_calls %}"
    assert tool_format(calls + "<tool_call>\n<function={{ call.name }}>") is QWEN_XML
    assert tool_format(calls + "[TOOL_CALLS]{{ call.name }}[ARGS]{{ call.arguments }}") is MISTRAL_ARGS
    assert tool_format("Use exact format: [func_name1(param1=value1)]" + calls) is PYTHONIC
    assert tool_format("{{ tools | tojson }}{% if message.tool_calls %}...") is JSON

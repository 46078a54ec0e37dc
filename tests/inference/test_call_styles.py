"""Calls in Qwen3-Coder's tags, as Python, and after Mistral's `[ARGS]`, with every kind of argument."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import pytest

from synthe_core.data.tool_calls.format import MISTRAL_ARGS, PYTHONIC, QWEN_XML, ToolFormat
from synthe_core.data.tool_calls.grammar import call_grammar
from synthe_core.data.tool_calls.parser import CallPiece, Piece, TextPiece
from synthe_core.data.tool_calls.schema import FunctionSchema, call_schema
from synthe_core.data.tool_calls.style_parsers import parser_for
from synthe_core.errors import InputError
from synthe_core.inference.request import Request, ToolUse
from synthe_core.inference.tool_constraint import compile_constraint
from tests.inference.test_tool_constraint import BYTES, MARKS, walk

KINDS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 6},
        "more/text": {"type": "string", "minLength": 2, "maxLength": 4},
        "day": {"type": "string", "pattern": "^[a-c]{2}$"},
        "unit": {"enum": ["km", "a\nb"]},
        "flag": {"type": "boolean"},
        "none": {"type": ["null", "integer"], "minimum": 0, "maximum": 30},
        "mixed": {"enum": ["1", 1, None]},
        "list": {"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 2},
        "deep": {"type": "object", "properties": {"x": {"type": "boolean"}}, "additionalProperties": False},
        "item": {"$ref": "#/$defs/item"},
    },
    "required": ["text", "flag", "none"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "string", "maxLength": 3}},
}
FUNCTIONS = [
    FunctionSchema("ad", {"type": "object", "properties": {}, "additionalProperties": False}),
    FunctionSchema("add", KINDS),
]
STYLES = [QWEN_XML, PYTHONIC, MISTRAL_ARGS]


def calls_of(pieces: list[Piece]) -> list[tuple[str, Any]]:
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        assert isinstance(piece, CallPiece), piece
        names.setdefault(piece.index, piece.name or "")
        arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    return [(names[index], json.loads(arguments[index])) for index in names]


@pytest.mark.parametrize("form", STYLES, ids=lambda form: form.name)
@pytest.mark.parametrize("tokenizer", [BYTES, MARKS], ids=lambda tokenizer: tokenizer.name)
def test_arguments_of_every_kind_are_valid(form: ToolFormat, tokenizer: Any) -> None:
    schema, seen = call_schema(form, FUNCTIONS, parallel=True), set[str]()
    for seed in range(12):
        request = Request("m", (1,), tool_use=ToolUse(form, schema, required=True))
        limit: Any = compile_constraint(tokenizer, tokenizer.vocab_size, request)
        tokens, complete = walk(tokenizer, limit, random.Random(seed), steps=6000)
        parser, decoder = parser_for(form, schema), tokenizer.decoder()
        pieces: list[Piece] = []
        for token in tokens:
            pieces += parser.open() if tokenizer.spelling(token) == form.opening else []
            pieces += parser.push(decoder.push(token))
        calls = calls_of(pieces + parser.push(decoder.flush()) + parser.flush())
        assert complete and calls and len(calls) == parser.num_complete
        for name, arguments in calls:
            parameters = {each.name: each.parameters for each in FUNCTIONS}[name]
            assert jsonschema_rs.is_valid(dict(parameters), arguments) and set(arguments) <= set(
                parameters["properties"]
            )
            seen |= set(arguments)
    assert {"text", "flag", "none"} <= seen and len(seen) > 6


XML = """I look.
<tool_call>
<function=add>
<parameter=text>
say "hi"
</parameter>
<parameter=flag>
true
</parameter>
<parameter=none>
null
</parameter>
<parameter=unit>
a
b
</parameter>
</function>
</tool_call>
<tool_call>
<function=ad>
</function>
</tool_call>"""
ADD = {"text": 'say "hi"', "flag": True, "none": None, "unit": "a\nb"}
TEXTS = [
    (QWEN_XML, XML, "I look.\n"),
    (PYTHONIC, '[add(text="say \\"hi\\"", unit="a\\nb", flag=True, none=None), ad()]', ""),
    (MISTRAL_ARGS, f"I look.\n[TOOL_CALLS]add[ARGS]{json.dumps(ADD)}[TOOL_CALLS]ad[ARGS]{{}}", "I look.\n"),
]


@pytest.mark.parametrize("form,text,before", TEXTS, ids=lambda value: getattr(value, "name", ""))
def test_calls_are_read_from_text(form: ToolFormat, text: str, before: str) -> None:
    parser = parser_for(form, call_schema(form, FUNCTIONS, parallel=True))
    pieces = [each for letter in text for each in parser.push(letter)] + parser.flush()
    said = "".join(each.text for each in pieces if isinstance(each, TextPiece))
    calls = calls_of([each for each in pieces if isinstance(each, CallPiece)])
    assert said.strip() == before.strip() and calls == [("add", ADD), ("ad", {})] and parser.num_complete == 2


@pytest.mark.parametrize("form", [QWEN_XML, PYTHONIC], ids=lambda form: form.name)
def test_white_space_in_json_is_that_of_other_calls(form: ToolFormat) -> None:
    nested = {"type": "object", "properties": {"x": {"type": "object", "properties": {"y": {"type": "null"}}}}}
    schema = call_schema(form, [FunctionSchema("f", {**nested, "required": ["x"]})], parallel=False)
    limit: Any = compile_constraint(BYTES, 257, Request("m", (1,), tool_use=ToolUse(form, schema, required=True)))
    begin = "<tool_call>\n<function=f>\n<parameter=x>\n{" if form is QWEN_XML else "[f(x={"
    for token in BYTES.encode(begin):
        limit.accept(token)
    assert {chr(token) for token in limit.allowed_tokens().nonzero()[:, 0].tolist()} == {'"', "}"}


def test_a_mark_that_is_a_special_token_has_no_text() -> None:
    parser = parser_for(MISTRAL_ARGS, call_schema(MISTRAL_ARGS, FUNCTIONS, parallel=True))
    pieces = parser.open() + parser.push('add{"a": {"b": 1}}') + parser.open() + parser.push("ad{}")
    assert calls_of(pieces) == [("add", {"a": {"b": 1}}), ("ad", {})]


def test_a_call_that_is_cut_gives_no_complete_call() -> None:
    for form, text, _ in TEXTS:
        parser = parser_for(form, call_schema(form, FUNCTIONS, parallel=True))
        parser.push(text[: text.index("hi")])
        parser.flush()
        assert parser.num_complete == 0


@pytest.mark.parametrize("form", [QWEN_XML, PYTHONIC], ids=lambda form: form.name)
@pytest.mark.parametrize("parameters", [{"anyOf": [{"required": ["a"]}]}, {"$ref": "#/$defs/x", "$defs": {"x": {}}}])
def test_arguments_that_properties_do_not_describe_are_refused(form: ToolFormat, parameters: Any) -> None:
    schema = call_schema(form, [FunctionSchema("f", {"type": "object", **parameters})], parallel=False)
    with pytest.raises(InputError, match="the parameters of f have"):
        call_grammar(form, schema, parallel=False, layout={})

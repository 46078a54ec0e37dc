"""Answers that a model of no sense writes under the constraint of tools, in every format."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from synthe_core.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer
from synthe_core.data.tool_calls.format import (
    HERMES,
    JSON,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    PYTHONIC,
    QWEN_XML,
    ToolFormat,
)
from synthe_core.data.tool_calls.parser import CallPiece, TextPiece
from synthe_core.data.tool_calls.schema import FunctionSchema, call_schema
from synthe_core.data.tool_calls.style_parsers import parser_for
from synthe_core.inference.request import Request, ToolUse
from synthe_core.inference.tool_constraint import MAX_CALLS, ToolCallConstraint, compile_constraint

FUNCTIONS = [
    FunctionSchema("now", {"type": "object", "properties": {}, "additionalProperties": False}),
    FunctionSchema(
        "ad d",
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/digit"}, "s": {"type": "string", "maxLength": 3}},
            "required": ["a"],
            "additionalProperties": False,
            "$defs": {"digit": {"enum": [1, 2, {"x": None}]}},
        },
    ),
]


def with_marks() -> Tokenizer:
    """Bytes, pieces that reach over marks, and a special token for Mistral's mark."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocab = {letter: i for i, letter in enumerate(sorted(letters))}
    joined = ["<t", "<to", "l>", "l>Ċ", "l>x", "l>{", "_call", '{"', '":', 'e":', '":Ġ"n', '":Ġ"x', "}}", '"},Ġ', "Ċ</"]
    merges: list[tuple[str, str]] = []
    for piece in joined:
        for size in range(2, len(piece) + 1):
            if piece[:size] not in vocab:
                vocab[piece[:size]] = len(vocab)
                merges.append((piece[: size - 1], piece[size - 1]))
    inner = tokenizers.Tokenizer(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.add_special_tokens([AddedToken(mark, special=True) for mark in ("[TOOL_CALLS]", "[ARGS]", "</s>")])
    return FileTokenizer(inner, "marks", end="</s>")


BYTES, MARKS = ByteTokenizer(), with_marks()


def constraint(tokenizer: Tokenizer, form: ToolFormat, **fields: Any) -> ToolCallConstraint:
    parallel = fields.setdefault("parallel", True)
    schema = call_schema(form, FUNCTIONS, parallel=parallel)
    request = Request("m", (1,), tool_use=ToolUse(form, schema, **fields))
    made = compile_constraint(tokenizer, tokenizer.vocab_size, request)
    assert isinstance(made, ToolCallConstraint)
    return made


def walk(
    tokenizer: Tokenizer, limit: ToolCallConstraint, draw: random.Random, begin: str = "", steps: int = 3000
) -> tuple[list[int], bool]:
    """A random text that the constraint allows, after `begin`, and whether it is complete."""
    tokens: list[int] = []
    wish = tokenizer.encode_marked(begin)
    for _ in range(steps):
        allowed = limit.allowed_tokens()
        ids = list(range(tokenizer.vocab_size)) if allowed is None else allowed.nonzero()[:, 0].tolist()
        assert ids
        token = wish.pop(0) if wish else draw.choice(ids)
        assert token in ids
        if token in tokenizer.ends:
            return tokens, True
        tokens.append(token)
        limit.accept(token)
        if limit.done:
            return tokens, True
    return tokens, False


def read(tokenizer: Tokenizer, form: ToolFormat, tokens: list[int]) -> tuple[str, list[tuple[str, Any]]]:
    """The text and the calls of an answer, as a server reads them."""
    schema = call_schema(form, FUNCTIONS, parallel=True)
    parser, decoder = parser_for(form, schema), tokenizer.decoder()
    pieces = []
    for token in tokens:
        if tokenizer.spelling(token) == form.opening and form.opening:
            pieces += parser.open()
        pieces += parser.push(decoder.push(token))
    pieces += parser.push(decoder.flush()) + parser.flush()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        if isinstance(piece, CallPiece):
            names.setdefault(piece.index, piece.name or "")
            arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    assert parser.num_complete == len(names)
    return text, [(names[index], json.loads(arguments[index])) for index in names]


def check(calls: list[tuple[str, Any]]) -> None:
    for name, arguments in calls:
        if name == "now":
            assert arguments == {}
        else:
            assert name == "ad d" and arguments["a"] in (1, 2, {"x": None})
            assert set(arguments) <= {"a", "s"} and len(arguments.get("s", "")) <= 3


FORMS = [
    pytest.param(tokenizer, form, id=f"{form.name}-{tokenizer.name}")
    for tokenizer, forms in (
        (BYTES, (HERMES, LLAMA, JSON, QWEN_XML, PYTHONIC, MISTRAL_ARGS)),
        (MARKS, (HERMES, LLAMA, JSON, MISTRAL, QWEN_XML, PYTHONIC, MISTRAL_ARGS)),
    )
    for form in forms
]


@pytest.mark.parametrize("tokenizer,form", FORMS)
@pytest.mark.parametrize("parallel", [False, True])
def test_required_calls_are_valid(tokenizer: Tokenizer, form: ToolFormat, parallel: bool) -> None:
    numbers = set()
    for seed in range(6):
        limit = constraint(tokenizer, form, required=True, parallel=parallel)
        tokens, complete = walk(tokenizer, limit, random.Random(seed))
        text, calls = read(tokenizer, form, tokens)
        assert complete and text == ""
        check(calls)
        numbers.add(len(calls))
    single = not parallel or (form.anchored and not form.in_list)
    assert numbers == {1} if single else 1 <= max(numbers) <= MAX_CALLS


@pytest.mark.parametrize("tokenizer,form", FORMS)
def test_a_call_that_begins_in_free_text_is_valid(tokenizer: Tokenizer, form: ToolFormat) -> None:
    begin = (form.head[:-1] or form.head) if form.anchored else f"Let me see. {form.opening.strip()[:-1] or ''}"
    begin = begin if form not in (MISTRAL, MISTRAL_ARGS) else f"Let me see. {form.opening}"
    completed = 0
    for seed in range(12):
        limit = constraint(tokenizer, form, parallel=False)
        tokens, complete = walk(tokenizer, limit, random.Random(seed), begin, steps=400)
        if not complete:
            continue
        _, calls = read(tokenizer, form, tokens)
        check(calls)
        completed += bool(calls)
    assert completed or form not in (MISTRAL, MISTRAL_ARGS, PYTHONIC)


@pytest.mark.parametrize("tokenizer,form", FORMS)
def test_free_text_is_free(tokenizer: Tokenizer, form: ToolFormat) -> None:
    text = 'Hello <tool_ {"name": [TOOL "x" l>x'
    limit = constraint(tokenizer, form)
    for token in tokenizer.encode(text):
        allowed = limit.allowed_tokens()
        assert allowed is None or bool(allowed[token])
        limit.accept(token)
    assert not limit.done


def test_no_token_reaches_over_the_end_of_the_mark() -> None:
    limit = constraint(MARKS, HERMES)
    for token in MARKS.encode("<tool_cal"):
        limit.accept(token)
    allowed = limit.allowed_tokens()
    assert allowed is not None
    ids = {MARKS.spelling(i): i for i in range(MARKS.vocab_size)}
    assert not any(allowed[ids[piece]] for piece in ("l>Ċ", "l>x", "l>{")) and allowed[ids["l>"]] and allowed[ids["l"]]
    limit.accept(ids["l>"])
    forced = limit.allowed_tokens()
    assert forced is not None and forced.nonzero()[:, 0].tolist() == MARKS.encode("\n")


def test_json_that_is_no_call() -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    kinds = set()
    for seed in range(20):
        limit = constraint(BYTES, HERMES, text=schema)
        tokens, complete = walk(BYTES, limit, random.Random(seed))
        text, calls = read(BYTES, HERMES, tokens)
        assert complete and bool(text) != bool(calls)
        if text:
            assert json.loads(text) in ({"ok": True}, {"ok": False})
        check(calls)
        kinds.add(bool(calls))
    assert kinds == {True, False}

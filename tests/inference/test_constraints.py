"""Schemas of JSON: which have an end, and which are compiled, within bounds of time and memory."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any

import pytest

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError
from synthe_core.inference import constraints, grammar_check, grammar_worker
from synthe_core.inference.constraints import compile_grammar, compile_json_schema
from synthe_core.inference.grammar_check import GrammarChecker, grammar_checker
from synthe_core.inference.json_schema import has_finite_value
from synthe_core.inference.request import Grammar

pytest.importorskip("llguidance")

TOKENIZER = ByteTokenizer()
SELF = {"$ref": "#"}
LIST = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]}},
    "required": ["next"],
}
ENDLESS: list[Any] = [
    SELF,
    False,
    {"anyOf": []},
    {"anyOf": [SELF, SELF]},
    {"type": "object", "properties": {"a": SELF}, "required": ["a"]},
    {"type": ["object", "array"], "required": ["a"], "additionalProperties": SELF, "items": SELF, "minItems": 1},
    {"allOf": [{"type": "object"}, {"properties": {"a": SELF}, "required": ["a"]}]},
    {"type": "array", "items": SELF, "minItems": 1},
    {"type": "array", "prefixItems": [{}, SELF], "minItems": 2},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b~1"}, "b/": {"$ref": "#/$defs/a"}}},
    {"type": "object", "required": ["a"], "additionalProperties": False},
]
FINITE: list[Any] = [
    True,
    {},
    {"type": "object", "properties": {"a": SELF}},
    {"type": ["object", "null"], "properties": {"a": SELF}, "required": ["a"]},
    {"properties": {"a": SELF}, "required": ["a"]},
    {"anyOf": [SELF, {"type": "null"}]},
    {"type": "array", "items": SELF},
    {"type": "array", "prefixItems": [{}, SELF], "minItems": 1},
    {"$ref": "#/$defs/list", "$defs": {"list": LIST}},
    {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]},
    {"const": {"a": 1}, "type": "object", "required": ["b"], "additionalProperties": False},
    {"$ref": "https://example.org/schema"},
    {"$ref": "#/nowhere"},
]


@pytest.mark.parametrize("schema", ENDLESS, ids=json.dumps)
def test_schemas_that_contain_themselves_have_no_value(schema: Any) -> None:
    assert not has_finite_value(schema)


@pytest.mark.parametrize("schema", FINITE, ids=json.dumps)
def test_recursion_that_may_stop_has_a_value(schema: Any) -> None:
    assert has_finite_value(schema)


def test_long_chains_of_references_are_followed() -> None:
    chain: dict[str, Any] = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(5000)}
    assert has_finite_value({**chain["0"], "$defs": {**chain, "5000": {}}})
    assert not has_finite_value({**chain["0"], "$defs": {**chain, "5000": {"$ref": "#/$defs/0"}}})
    nested: Any = {}
    for _ in range(5000):
        nested = {"type": "object", "properties": {"a": nested}, "required": ["a"]}
    assert has_finite_value(nested)


def compiled(schema: Any) -> Any:
    return compile_json_schema(TOKENIZER, 257, schema)


PATTERNS = [f"^(.*{letter}.{{{n}}}|[^{letter}]*)*$" for n, letter in enumerate("abcdefghijklmnopqrstuvwx")]
TOO_MUCH: dict[str, Any] = {
    "many patterns at once": {"type": "string", "allOf": [{"pattern": pattern} for pattern in PATTERNS]},
    "look back": {"type": "string", "allOf": [{"pattern": f"[a-m].{{{n}}}[n-z]"} for n in range(10, 34)]},
    "large factor": {"type": "integer", "multipleOf": 99999989},
    "nested repeats": {"type": "string", "pattern": "^(a{1000}){1000}$"},
    "deep repeats": {"type": "string", "pattern": "^((((a{99}){99}){99}){99}){99}$"},
    "many strings": {"enum": [f"s{n}" for n in range(50_000)]},
    "optional properties": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1500)}},
}


@pytest.mark.parametrize("name", list(TOO_MUCH))
def test_what_takes_too_much_is_refused(name: str) -> None:
    """In this process it takes next to nothing: the worker has the bounds, and dies where llguidance has none."""
    before = resident()
    with pytest.raises(InputError, match="JSON schema is invalid") as refused:
        compiled(TOO_MUCH[name])
    assert len(refused.value.message) < 300 and "\n" not in refused.value.message and refused.value.hint
    assert resident() - before < 200 << 20
    assert compiled({"type": "integer"}).allowed_tokens().any(), "the next one is compiled"


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{}] * 10_000},
        {"enum": [f"s{n}" for n in range(4000)]},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        {
            "type": "object",
            "patternProperties": {f"^{c}.*{c}$": {"type": "null"} for c in "abcdefghijklmnopqrstuvwxyz"},
        },
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(300)}},
        {"$ref": "#/$defs/list", "$defs": {"list": LIST}},
    ],
    ids=["anyOf", "enum", "minLength", "minItems", "patternProperties", "properties", "list"],
)
def test_large_schemas_within_the_bounds_are_compiled(schema: Any) -> None:
    constraint = compiled(schema)
    for _ in range(20):
        if constraint.done:
            break
        allowed = constraint.allowed_tokens()
        constraint.accept(int(allowed.nonzero()[-1]))


@pytest.mark.parametrize("schema", [{"type": "array", "uniqueItems": True}, {"type": "no such type"}])
def test_what_is_not_supported_is_refused(schema: Any) -> None:
    with pytest.raises(InputError, match="JSON schema is invalid"):
        compiled(schema)


def test_each_schema_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if many ask for it at the same time, and if it is refused."""
    jobs: list[str] = []
    gate = threading.Event()

    def check(self: GrammarChecker, grammar: str) -> str | None:
        jobs.append(grammar)
        assert gate.wait(60)
        return "no" if "refused" in grammar else None

    monkeypatch.setattr(GrammarChecker, "error_of", check)
    monkeypatch.setattr(constraints, "_compiled", constraints._OnceEach(4))
    results: list[Any] = []

    def ask(schema: Any) -> None:
        try:
            results.append(compiled(schema))
        except InputError as error:
            results.append(error.message)

    schemas = [{"const": "taken"}, {"const": "refused"}] * 8
    threads = [threading.Thread(target=ask, args=(schema,)) for schema in schemas]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(60)
    assert len(results) == 16 and len(jobs) == 2
    assert sum(isinstance(result, str) for result in results) == 8
    for number in range(6):
        ask({"const": number})
    assert len(jobs) == 8 and len(constraints._compiled._futures) == 4


def test_constraints_of_one_schema_are_independent() -> None:
    one, other = compiled({"type": "boolean"}), compiled({"type": "boolean"})
    for byte in b"true":
        one.accept(byte)
    assert one.done and not other.done and other.allowed_tokens()[ord("f")]


def test_a_worker_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = GrammarChecker()
    grammar = json.dumps({"grammars": [{"json_schema": {"type": "null"}}]})
    try:
        assert checker.error_of(grammar) is None
        worker = checker._worker
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(60)
        assert checker.error_of(grammar) is None and checker._worker is not worker
        assert checker._worker is not None
        os.kill(checker._worker.pid, signal.SIGSTOP)  # it does not answer, however fast it is
        monkeypatch.setattr(grammar_check, "TIMEOUT", 0.0)
        assert "too much time" in str(checker.error_of(grammar)) and checker._worker is None
    finally:
        checker.close()
    assert checker._worker is None and grammar_checker() is grammar_checker()


def test_the_worker_answers_what_is_no_grammar() -> None:
    checker = GrammarChecker()
    try:
        assert checker.error_of("rubbish") and checker.error_of("") and checker.error_of('{"grammars": []}')
    finally:
        checker.close()


def test_the_worker_imports_nothing_of_the_package() -> None:
    with open(grammar_worker.__file__, encoding="utf-8") as file:
        assert "synthe" not in file.read()


@pytest.mark.parametrize(
    "kind,text,says,simpler",
    [
        ("grammar", "start: start", "it allows no text", False),
        ("grammar", "root ::= x", "'x' not found", False),
        ("regex", "((", "unclosed group", False),
        ("regex", "(a{1000}){1000}", "too many expressions", True),
    ],
)
def test_the_hint_to_simplify_is_for_what_is_too_much(kind: str, text: str, says: str, simpler: bool) -> None:
    with pytest.raises(InputError, match=says) as caught:
        compile_grammar(ByteTokenizer(), 257, Grammar(kind, text))  # type: ignore[arg-type]
    assert (caught.value.hint is not None) == simpler


def test_every_end_token_ends_the_text() -> None:
    several = ByteTokenizer()
    several.stops = frozenset({1, 7})
    for constraint in (
        compile_grammar(several, 300, Grammar("regex", "ab*")),
        compile_json_schema(several, 300, {"type": "integer"}),
    ):
        constraint.accept(ord("a" if constraint._name == "regular expression" else "3"))
        allowed = constraint.allowed_tokens()
        assert allowed[[1, 7, several.end]].all() and not allowed[[2, 299]].any()

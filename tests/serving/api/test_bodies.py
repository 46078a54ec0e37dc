"""Bodies that are made to cost: they are refused before anything is built of them, and away from the event loop."""

from __future__ import annotations

import json
import threading
import tracemalloc
from typing import Any

import httpx
import pytest

from synthe_core.serving.api import bodies, context
from synthe_core.serving.api.endpoints import ENDPOINTS
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.json_body import MAX_CONTAINERS, MAX_NAMES, MAX_VALUES, parse_body
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.serving.api.scripted import Scripted, answer

JSON = {"Content-Type": "application/json"}
MANY = 400_000


def repeated(item: bytes, count: int = MANY) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


def with_field(name: str, value: bytes) -> bytes:
    return b'{"model": "m", "prompt": "x", "' + name.encode() + b'": ' + value + b"}"


COSTLY = {
    "empty lists as prompts": with_field("prompt", repeated(b"[]")),
    "empty texts as prompts": with_field("prompt", repeated(b'""')),
    "numbers as prompts": with_field("prompt", repeated(b"-1")),
    "texts, and a number last": with_field("prompt", b'["a", ' + repeated(b'"a"', 100_000)[1:-1] + b", 1]"),
    "numbers, and a text last": with_field("prompt", repeated(b"7", 100_000)[:-1] + b', "a"]'),
    "empty objects as messages": b'{"model": "m", "messages": ' + repeated(b"{}") + b"}",
    "messages without a role": b'{"model": "m", "messages": ' + repeated(b'{"content": ""}', 8000) + b"}",
    "parts of no type": b'{"model": "m", "messages": [{"role": "user", "content": ' + repeated(b"{}", 8000) + b"}]}",
    "stop strings": with_field("stop", repeated(b'""')),
    "biases": with_field("logit_bias", b"{" + b",".join(b'"t%d": 1' % i for i in range(100_000)) + b"}"),
    "biases, fewer": with_field("logit_bias", b"{" + b",".join(b'"t%d": 1' % i for i in range(MAX_NAMES)) + b"}"),
    "unknown fields": b"{" + b",".join(b'"k%d": 1' % i for i in range(100_000)) + b"}",
    "unknown fields, fewer": b"{" + b",".join(b'"k%d": 1' % i for i in range(MAX_NAMES)) + b"}",
    "a field with a name of 1 MB": b'{"model": "m", "' + b"x" * (1 << 20) + b'": 1}',
    "a message's field with a name of 1 MB": b'{"model": "m", "messages": [{"' + b"x" * (1 << 20) + b'": 1}]}',
    "a model with a name of 1 MB": b'{"model": "' + b"x" * (1 << 20) + b'", "prompt": "x"}',
    "a deep field": with_field("metadata", b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "deep lists": with_field("prompt", b"[" * 200_000 + b"]" * 200_000),
    "a number of 5,000 digits": with_field("metadata", b'{"a": ' + b"9" * 5000 + b"}"),
    "a number of a million digits": with_field("seed", b"9" * 1_000_000),
    "texts with nothing between them": with_field("prompt", b'""' * MANY),
    "a text that does not end": with_field("prompt", b'"' + b",[" * MANY)[:-1],
    "a text that ends in a backslash": with_field("prompt", b'"' + b",[" * MANY + b"\\")[:-1],
    "half a surrogate": with_field("stop", b'"\\ud800"'),
    "a schema of many names": b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": '
    + b'{"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": '
    + repeated(b'"aaaaaaaa"', 10_000)
    + b"}}}}",
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_body_costs_little(name: str) -> None:
    """No error for each item, no objects for what is refused: memory is bounded by the limits, not by the body."""
    model = bodies.Chat if b'"messages"' in COSTLY[name] else bodies.Completion
    tracemalloc.start()
    try:
        with pytest.raises(HttpError) as caught:
            parse_body(COSTLY[name], model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.status == 400
    assert len(json.dumps(caught.value.body)) < 1200
    assert peak < 40 << 20


def test_what_is_counted_is_outside_of_texts() -> None:
    """A text may have any number of commas and brackets; escaped quotes do not end it, at whatever place."""
    for text in ('[{,:"' * 200_000, '\\"[,' * 300_000, "\\\\[," * 300_000, '"' * (1 << 19) + ",[" * MAX_CONTAINERS):
        body = parse_body(json.dumps({"model": "m", "prompt": text}).encode(), bodies.Completion)
        assert body.prompt == text
    tokens = list(range(MAX_VALUES - 10))
    assert parse_body(json.dumps({"model": "m", "prompt": tokens}).encode(), bodies.Completion).prompt == tokens
    with pytest.raises(HttpError, match="values"):
        parse_body(json.dumps({"model": "m", "prompt": [*tokens] * 2}).encode(), bodies.Completion)


def test_a_list_of_every_body_is_validated_up_to_its_first_error() -> None:
    def lists(schema: Any) -> Any:
        if isinstance(schema, dict):
            if schema.get("type") == "list":
                yield schema
            for inner in schema.values():
                yield from lists(inner)
        elif isinstance(schema, (list, tuple)):
            for inner in schema:
                yield from lists(inner)

    every = [each for endpoint in ENDPOINTS if endpoint.body for each in lists(endpoint.body.__pydantic_core_schema__)]
    assert len(every) > 8 and all(each.get("fail_fast") for each in every)


def test_a_large_body_is_parsed_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop answers others meanwhile; a parse that never ends holds up nobody."""
    threads: dict[int, str] = {}
    begun, release = threading.Event(), threading.Event()

    def parse(content: bytes, *rest: Any) -> Any:
        threads[len(content)] = threading.current_thread().name
        if len(content) > 100_000:
            begun.set()
            assert release.wait(60)
        return parse_body(content, *rest)

    monkeypatch.setattr(context, "parse_body", parse)
    large = json.dumps({"model": "m", "prompt": "x" * 200_000, "max_tokens": 1}).encode()
    statuses: list[int] = []
    with (
        Server(Scripted(answer), Settings(max_prompt=1 << 20)) as server,  # type: ignore[arg-type]
        httpx.Client(base_url=server.url, headers=JSON, timeout=60, trust_env=False) as client,
    ):

        def post() -> None:
            with httpx.Client(base_url=server.url, headers=JSON, timeout=60, trust_env=False) as other:
                statuses.append(other.post("/v1/completions", content=large).status_code)

        sender = threading.Thread(target=post)
        sender.start()
        try:
            assert begun.wait(60)
            assert client.get("/health").status_code == 200
            assert client.post("/v1/completions", json={"model": "m", "prompt": "x"}).status_code == 200
            assert not statuses
        finally:
            release.set()
            sender.join(60)
    assert statuses == [200]
    assert threads[len(large)].startswith("bodies")

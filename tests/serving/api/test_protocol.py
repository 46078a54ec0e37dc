"""HTTP as clients speak it: compression, OPTIONS, CORS, unknown paths, notes, codes and the log."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthe_core.errors import InputError, WorkError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import Finished, PrefillFinished
from synthe_core.serving.api.endpoints import ENDPOINTS
from synthe_core.serving.api.errors import without_folders
from synthe_core.serving.api.tokens import unit_length
from tests.serving.api.scripted import Scripted, answer

BODY = {"model": "m", "prompt": "x"}
JSON = {"Content-Type": "application/json"}
GZIP = {**JSON, "Content-Encoding": "gzip"}


def send(ask: Any, content: bytes, headers: dict[str, str] = JSON, **settings: Any) -> Any:
    return ask(engine=Scripted(answer), **settings).post("/v1/completions", content=content, headers=headers)


def test_a_compressed_body_is_read(ask: Any) -> None:
    content = json.dumps(BODY).encode()
    assert send(ask, gzip.compress(content), GZIP).status_code == 200
    assert send(ask, content, {**JSON, "Content-Encoding": "identity"}).status_code == 200
    for damaged in (
        content,
        gzip.compress(content)[:-9],
        gzip.compress(content) + b"more",
        b"",
        zlib.compress(content),
    ):
        refused = send(ask, damaged, GZIP)
        assert refused.status_code == 400
        assert "gzip" in refused.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "nonsense"])
def test_other_compressions_are_refused(ask: Any, encoding: str) -> None:
    refused = send(ask, b"{}", {**JSON, "Content-Encoding": encoding})
    assert refused.status_code == 415
    assert refused.headers["accept-encoding"] == "gzip"


def test_a_bomb_is_refused(ask: Any) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    assert send(ask, bomb, GZIP, max_body=100_000).status_code == 413


@pytest.mark.parametrize(
    "content,headers,status",
    [
        (b"\xef\xbb\xbf" + json.dumps(BODY).encode(), JSON, 200),
        (json.dumps(BODY).encode(), {"Content-Type": "application/json; charset=utf-8"}, 200),
        (json.dumps(BODY).encode(), {"Content-Type": "Application/JSON;charset=UTF-8"}, 200),
        ('{"model": "m", "prompt": "é"}'.encode(), JSON, 200),
        ('{"model": "m", "prompt": "é"}'.encode("latin-1"), JSON, 400),
        ('{"model": "m", "prompt": "é"}'.encode("utf-16"), JSON, 400),
        (b'{"model": "m", "prompt": "a\\ud83d b"}', JSON, 400),
        (b'{"model": "m", "prompt": "a\\ud83d\\ude00 b"}', JSON, 200),
    ],
)
def test_encodings(ask: Any, content: bytes, headers: dict[str, str], status: int) -> None:
    answered = send(ask, content, headers)
    assert answered.status_code == status
    if status == 400 and b"ud83d" not in content:
        byte, place = ("0xff", 0) if content.startswith(b"\xff") else ("0xe9", 26)
        assert answered.json()["error"]["message"] == f"the body is not UTF-8: byte {byte} at {place}"


def test_of_equal_keys_the_last_counts(ask: Any) -> None:
    content = b'{"model": "m", "prompt": "a", "prompt": "b", "echo": true}'
    assert send(ask, content).json()["choices"][0]["text"] == "babc"


@pytest.mark.parametrize("path", sorted({each.path for each in ENDPOINTS}))
def test_options_name_the_methods(ask: Any, path: str) -> None:
    client = ask(engine=Scripted(answer), keys=("k" * 32,))
    answered = client.options(path.replace("{", "").replace("}", ""))
    assert answered.status_code == 200
    allowed = set(answered.headers["allow"].split(", "))
    methods = {each.method for each in ENDPOINTS if each.path == path}
    assert allowed == methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())


def test_a_method_that_a_path_does_not_take(ask: Any) -> None:
    refused = ask(engine=Scripted(answer)).get("/v1/chat/completions")
    assert refused.status_code == 405
    assert refused.headers["allow"] == "POST, OPTIONS"
    assert "it takes POST" in refused.json()["error"]["message"]
    assert ask(engine=Scripted(answer)).options("/nothing").status_code == 404


def test_cors_lets_the_headers_of_clients_through(ask: Any) -> None:
    origin = "https://a.example"
    client = ask(engine=Scripted(answer), origins=(origin,))
    names = "authorization, content-type, idempotency-key, openai-beta, x-stainless-os, x-stainless-retry-count"
    preflight = client.options(
        "/v1/chat/completions",
        headers={"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": names},
    )
    assert preflight.status_code == 200
    allowed = {name.strip().lower() for name in preflight.headers["access-control-allow-headers"].split(",")}
    assert set(names.split(", ")) <= allowed
    answered = client.post("/v1/completions", json=BODY, headers={"Origin": origin})
    exposed = answered.headers["access-control-expose-headers"].lower()
    assert "x-request-id" in exposed and "x-synthe-note" in exposed and "retry-after" in exposed


@pytest.mark.parametrize(
    "path,said",
    [
        ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("/chat/completions", "did you mean /v1/chat/completions?"),
        ("/completions", "did you mean /v1/completions?"),
        ("/v1/Embeddings", "did you mean /v1/embeddings?"),
        ("/v1/tokenize", "did you mean /tokenize?"),
        ("/responses", "no such path (did you mean /v1/responses?)"),
        ("/v1/fine_tuning/jobs", "POST /v1/chat/completions"),
        ("/v1", "GET /v1/models"),
    ],
)
def test_an_unknown_path_names_what_there_is(ask: Any, path: str, said: str) -> None:
    for method in ("GET", "POST"):
        refused = ask(engine=Scripted(answer)).request(method, path, json={})
        assert refused.status_code == 404
        assert said in refused.json()["error"]["message"]


def test_a_slash_at_the_end_is_no_other_path(ask: Any) -> None:
    assert ask(engine=Scripted(answer)).post("/v1/completions/", json=BODY).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_more_tokens_than_the_server_allows_are_cut(ask: Any, stream: bool) -> None:
    engine = Scripted(answer)
    client = ask(engine=engine, max_tokens=30)
    messages = [{"role": "user", "content": "x"}]
    for path, body in (
        ("/v1/completions", {**BODY, "max_tokens": 99}),
        ("/v1/chat/completions", {"model": "m", "messages": messages, "max_completion_tokens": 99}),
    ):
        answered = client.post(path, json=body | {"stream": stream})
        assert answered.status_code == 200
        assert engine.requests[-1].max_tokens == 30
        assert answered.headers["x-synthe-note"] == "max_tokens was cut to 30, the maximum of this server"
        assert (
            "x-synthe-note"
            not in client.post(path, json=body | {"max_tokens": 30, "max_completion_tokens": 30}).headers
        )


def test_what_is_too_long_has_one_code_everywhere(ask: Any, engine: AsyncEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr(engine.models["plain"], "max_length", 40)
    client = ask(max_prompt=60)
    message = [{"role": "user", "content": "x" * 45}]
    session = {"model": "plain", "prompt": "x" * 20, "max_tokens": 5, "session": "too-long"}
    assert client.post("/v1/completions", json=session).status_code == 200
    refused = [
        client.post("/v1/completions", json={"model": "plain", "prompt": "x" * 45}),
        client.post("/v1/completions", json={"model": "plain", "prompt": "x" * 75}),
        client.post("/v1/completions", json={"model": "plain", "prompt": "x" * 30, "max_tokens": 20}),
        client.post("/v1/chat/completions", json={"model": "plain", "messages": message}),
        client.post("/v1/embeddings", json={"model": "plain", "input": "x" * 45}),
        client.post("/v1/embeddings", json={"model": "plain", "input": "x" * 75}),
        client.post("/tokenize", json={"model": "plain", "prompt": "x" * 75}),
        client.post("/tokenize", json={"model": "plain", "messages": [{"role": "user", "content": "x" * 75}]}),
        client.post("/v1/completions", json=session),
        client.post("/api/introspect", json={"model": "plain", "text": "x" * 45}),
    ]
    for each in refused:
        assert each.status_code == 400, each.text
        assert each.json()["error"]["code"] == "context_length_exceeded", each.text
    client.delete("/api/sessions/too-long")


def test_embeddings_have_length_one() -> None:
    rows = np.array([[3, 4], [0, 0], [3e30, 4e30], [3e-40, 4e-40], [-1, 0]], dtype=np.float32)
    lengths = np.linalg.norm(unit_length(rows).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, [1, 0, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(unit_length(rows)[2], [0.6, 0.8], rtol=1e-6)


def test_the_log_says_why(ask: Any) -> None:
    lines: list[str] = []
    client = ask(engine=Scripted(answer), log=lines.append)
    client.post("/v1/completions", json={**BODY, "temperature": -1})
    client.post("/v1/completions", json={**BODY, "secret": "secret"})
    client.post("/v1/completions", json={**BODY, "model": "other"})
    client.get("/v1/complete")
    client.get("/v1/completions")
    client.post("/v1/completions", content=b"{", headers=JSON)
    assert [line.split("  ", 3)[1] for line in lines] == ["400", "400", "404", "404", "405", "400"]
    reasons = (
        "temperature: must be,unknown field,no such model: other,no such path,this path does not,the body is invalid"
    )
    for line, reason in zip(lines, reasons.split(","), strict=True):
        assert reason in line
        assert "secret" not in line
    refused = ask(engine=Scripted(answer), log=lines.append, keys=("k" * 32,))
    refused.get("/v1/models")
    assert "an API key is required" in lines[-1]


def test_a_failure_in_a_stream_is_in_the_log(ask: Any) -> None:
    lines: list[str] = []
    events = [PrefillFinished(1, 0), Finished("error", "", 1, 0, 0, "the JSON schema cannot be followed: secret")]
    client = ask(engine=Scripted(lambda request: events), log=lines.append)
    assert "cannot be followed: secret" in client.post("/v1/completions", json={**BODY, "stream": True}).text
    assert "the JSON schema cannot be followed" in lines[-1] and "secret" not in lines[-1]


@pytest.mark.parametrize(
    "message,shown",
    [
        ("no such file: /srv/models/mine/weights.safetensors", "no such file: weights.safetensors"),
        ("[Errno 28] No space left: '/var/lib/chats/a.session'", "[Errno 28] No space left: 'a.session'"),
        (r"cannot read C:\models\mine\a.json", "cannot read a.json"),
        ("see /v1/models or use n/a and 3/4", "see models or use n/a and 3/4"),
        ("#/$defs/a is unresolved", "#/$defs/a is unresolved"),
    ],
)
def test_folders_of_the_server_are_not_shown(message: str, shown: str) -> None:
    assert without_folders(message) == shown


@pytest.mark.parametrize("kind", [InputError, WorkError])
def test_errors_show_no_paths(ask: Any, tmp_path: Path, kind: type[Exception]) -> None:
    class Broken(Scripted):
        def find(self, name: str, owner: str = "") -> Any:
            raise kind(f"cannot read {tmp_path}/model/weights.safetensors", f"look at {tmp_path}/model")

    refused = ask(engine=Broken(answer)).post("/v1/completions", json=BODY)
    assert str(tmp_path) not in refused.text
    assert "cannot read weights.safetensors" in refused.text
    failed = [PrefillFinished(1, 0), Finished("error", "", 1, 0, 0, f"cannot write {tmp_path}/chats/a")]
    for stream in (False, True):
        client = ask(engine=Scripted(lambda request: failed))
        assert str(tmp_path) not in client.post("/v1/completions", json={**BODY, "stream": stream}).text


@pytest.mark.parametrize(
    "path,body,message",
    [
        ("chat/completions", {"response_format": {"type": "xml"}}, "response_format: expected one of 'text', 'json_o"),
        ("chat/completions", {"response_format": {}}, "response_format: 'type' is required"),
        (
            "chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema: expected an object",
        ),
        (
            "chat/completions",
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema: this field is required",
        ),
        ("chat/completions", {"response_format": "json"}, "response_format: expected an object"),
        ("completions", {"session": "../x"}, "session: must match ^["),
        ("completions", {"logit_bias": {"-1": 1}}, "logit_bias: the key '-1' is invalid: it must match ^["),
    ],
)
def test_faults_are_named_in_the_words_of_json(ask: Any, path: str, body: dict[str, Any], message: str) -> None:
    given = {"prompt": "x"} if path == "completions" else {"messages": [{"role": "user", "content": "x"}]}
    got = ask(engine=Scripted(answer)).post(f"/v1/{path}", json={"model": "m", **given, **body})
    assert got.status_code == 400 and got.json()["error"]["message"].startswith(message), got.text


@pytest.mark.parametrize("body", ["null", "[]", '"x"', "5"])
def test_a_body_that_is_no_object_is_said_to_be_none(ask: Any, body: str) -> None:
    got = ask(engine=Scripted(answer)).post(
        "/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert got.json()["error"]["message"] == "the body is invalid: expected an object"


def test_tokens_outside_the_vocabulary_have_no_text(ask: Any) -> None:
    client = ask(engine=Scripted(answer))
    got = client.post("/detokenize", json={"tokens": [65, 257]})
    assert got.status_code == 400 and "no token 257" in got.json()["error"]["message"]
    assert client.post("/detokenize", json={"tokens": [65, 256]}).status_code == 200
    assert client.post("/detokenize", json={"tokens": []}).status_code == 200

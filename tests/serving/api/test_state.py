"""Reports, conversations and adapters over HTTP, and JSON by a schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from synthe_core.adapters import peft
from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.spec import LoraSpec
from synthe_core.adapters.targets import new_adapter
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from tests.serving.api.test_openai_client import chat, create


def json_of(answered: Any) -> Any:
    assert answered.status_code == 200, answered.text
    return answered.json()


def test_introspection_of_a_text_and_of_the_last_request(ask: Any) -> None:
    client = ask()
    report = json_of(client.post("/api/introspect", json={"model": "plain", "text": "the sea"}))
    assert [token["text"] for token in report["tokens"]] == list("the sea")
    assert report["left_out"] == 0
    assert any(len(series["rows"]) for series in report["series"])
    assert {series["path"].split(".")[0] for series in report["series"]} >= {"blocks"}
    assert report["model"]["parameters"] > 0
    assert client.post("/api/introspect", json={"model": "plain"}).status_code == 404
    json_of(
        client.post("/v1/completions", json={"model": "plain", "prompt": "rain", "max_tokens": 4, "temperature": 0})
    )
    last = json_of(client.post("/api/introspect", json={"model": "plain"}))
    assert [token["text"] for token in last["tokens"]][:4] == list("rain")
    assert len(last["tokens"]) == 8


def test_introspection_needs_the_key_of_the_last_request(ask: Any) -> None:
    keys = ("a" * 32, "b" * 32)
    client = ask(keys=keys)
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in keys)
    json_of(client.post("/v1/completions", json={"model": "plain", "prompt": "secret", "max_tokens": 1}, headers=mine))
    assert client.post("/api/introspect", json={"model": "plain"}, headers=yours).status_code == 404
    assert client.post("/api/introspect", json={"model": "plain"}, headers=mine).status_code == 200


def test_a_session_continues(ask: Any) -> None:
    """Text by text it is what one request over all of it says, and costs the new tokens only."""
    client = ask()

    def go_on(prompt: str, session: str, count: int = 6) -> Any:
        body = {"model": "plain", "prompt": prompt, "max_tokens": count, "temperature": 0, "session": session}
        return json_of(client.post("/v1/completions", json=body))

    first = go_on("the sea", "talk")["choices"][0]["text"]
    listed = {info["id"]: info for info in json_of(client.get("/api/sessions"))["data"]}
    assert (listed["talk"]["model"], listed["talk"]["saved"]) == ("plain", False)
    assert json_of(client.get("/api/sessions/talk"))["tokens"] == len("the sea") + 6
    assert json_of(client.post("/api/sessions/talk/fork", json={"to": "other"}))["id"] == "other"
    second = go_on(" and", "talk")
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= len("the sea")
    forked = go_on(" and", "other")["choices"][0]["text"]
    assert forked == second["choices"][0]["text"]
    tokens = [*b"the sea", *_tokens(client, first), *b" and"]
    whole = json_of(
        client.post("/v1/completions", json={"model": "plain", "prompt": tokens, "max_tokens": 6, "temperature": 0})
    )
    if "\N{REPLACEMENT CHARACTER}" not in first:
        assert whole["choices"][0]["text"] == second["choices"][0]["text"]
    for name in ("talk", "other"):
        assert json_of(client.delete(f"/api/sessions/{name}"))["deleted"] is True
    assert not {"talk", "other"} & {info["id"] for info in json_of(client.get("/api/sessions"))["data"]}
    for refused in (client.get("/api/sessions/talk"), client.delete("/api/sessions/..%2f..%2fx")):
        assert refused.status_code == 404


def test_a_conversation_longer_than_the_model_reads_is_refused(
    ask: Any, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client error, not a server error; the earlier turns are still there."""
    client = ask()
    body = {"model": "plain", "prompt": "the sea", "max_tokens": 6, "temperature": 0, "session": "long"}
    json_of(client.post("/v1/completions", json=body))
    monkeypatch.setattr(engine.models["plain"], "max_length", 18)
    refused = client.post("/v1/completions", json=body)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert "more than the model's 18 tokens" in refused.json()["error"]["message"]
    assert json_of(client.get("/api/sessions/long"))["tokens"] == len("the sea") + 6
    json_of(client.delete("/api/sessions/long"))


def _tokens(client: Any, text: str) -> list[int]:
    return json_of(client.post("/tokenize", json={"model": "plain", "prompt": text}))["tokens"]


@pytest.mark.parametrize("model", ["chatty", "plain"])
def test_a_chat_session_reads_only_new_messages(ask: Any, model: str) -> None:
    """A session has read what the whole conversation renders to, whatever its answers ended with."""
    client, name = ask(), f"chat-{model}"
    body = {"model": model, "max_completion_tokens": 5, "temperature": 0, "session": name}
    first = json_of(client.post("/v1/chat/completions", json=body | {"messages": [{"role": "user", "content": "hi"}]}))
    answer = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    more = {"role": "user", "content": "and?"}
    second = json_of(client.post("/v1/chat/completions", json=body | {"messages": [more]}))
    chat_body = {"model": model, "messages": [{"role": "user", "content": "hi"}, answer, more]}
    count = json_of(client.post("/tokenize", json=chat_body))["count"]
    if "\N{REPLACEMENT CHARACTER}" not in answer["content"]:
        added = model == "plain" and not answer["content"].startswith(" ")  # the space that a model begins with
        assert second["usage"]["prompt_tokens"] == count - added
    json_of(client.delete(f"/api/sessions/{name}"))


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Lima"]}, "size": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "size"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_json_by_a_schema(client: openai.OpenAI, stream: bool) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    answered = chat(
        client, response_format=response_format, temperature=1, seed=2, max_completion_tokens=80, stream=stream
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answered)
    else:
        text = answered.choices[0].message.content
        assert answered.choices[0].finish_reason == "stop"
    value = json.loads(text)
    assert set(value) == {"city", "size"}
    assert value["city"] in ("Bern", "Lima")


def test_invalid_schemas_are_refused(client: openai.OpenAI) -> None:
    for schema in ({"type": "nothing"}, {"type": "object", "properties": 3}, {"$ref": "#/nowhere"}):
        response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError):
            chat(client, response_format=response_format)


@pytest.fixture
def adapters(tmp_path: Path, engine: AsyncEngine) -> Path:
    """A folder with `shifted`, an adapter of `plain`."""
    return adapter_folder(tmp_path, engine.models["plain"])


def adapter_folder(folder: Path, served: LoadedModel) -> Path:
    spec = LoraSpec(rank=2, alpha=6)
    with torch.random.fork_rng():
        torch.manual_seed(1)  # some adapters change no greedy token
        plain = new_adapter(served.model, spec)
    changed = Adapter({name: LowRank(c.lora_A, torch.ones_like(c.lora_B), c.scaling) for name, c in plain.maps.items()})
    (folder / "shifted").mkdir()
    peft.write(folder / "shifted", changed.tensors, spec, "elsewhere")
    return folder


def test_adapters_are_loaded_and_unloaded(ask: Any, adapters: Path, client: openai.OpenAI) -> None:
    closed = ask()
    body = {"model": "plain", "name": "new", "path": "shifted"}
    assert closed.post("/api/adapters", json=body).status_code == 403
    opened = ask(adapters=(adapters,))
    for path in ("nothing", "..", "../x", str(adapters / "shifted"), "shifted/"):
        assert opened.post("/api/adapters", json=body | {"path": path}).status_code == 404
    loaded = json_of(opened.post("/api/adapters", json=body))
    assert (loaded["id"], loaded["parent"]) == ("plain:new", "plain")
    try:
        assert "plain:new" in [model.id for model in client.models.list()]
        assert create(client, model="plain:new").choices[0].text != create(client).choices[0].text
        assert opened.post("/api/adapters", json=body).status_code == 400  # there already
    finally:
        assert json_of(opened.delete("/api/adapters/plain/new"))["deleted"] is True
    assert opened.delete("/api/adapters/plain/new").status_code == 404
    with pytest.raises(openai.NotFoundError):
        create(client, model="plain:new")

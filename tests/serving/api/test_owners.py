"""API keys separate users: what one key has sent, saved and loaded does not exist for another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.session_store import SessionLimits
from synthe_core.serving.api.app import App
from synthe_core.serving.api.settings import Settings
from tests.serving.api.test_state import adapter_folder, json_of

KEYS = ("a" * 32, "b" * 32)
MINE, YOURS = ({"Authorization": f"Bearer {key}"} for key in KEYS)
TEXT = {"model": "plain", "prompt": "the secret of the sea", "max_tokens": 2, "temperature": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def keyed(checkpoints: Path, folder: Path) -> Iterator[Callable[..., TestClient]]:
    """A server of two keys over an engine of its own."""
    with AsyncEngine(
        [LoadedModel.load(checkpoints / "plain")],
        sessions=folder,
        session_limits=SessionLimits(2, 1 << 30),
        max_owned=3,
    ) as engine:

        def make(**settings: Any) -> TestClient:
            app = App(engine, Settings(keys=KEYS, **settings))
            return TestClient(app, base_url="http://127.0.0.1")

        make.engine = engine  # type: ignore[attr-defined]
        yield make


def complete(client: TestClient, headers: dict[str, str], **more: Any) -> Any:
    return client.post("/v1/completions", json={**TEXT, **more}, headers=headers)


def test_sessions_of_another_key_do_not_exist(keyed: Callable[..., TestClient], folder: Path) -> None:
    client = keyed()
    first = json_of(complete(client, MINE, session="talk"))
    assert json_of(client.get("/api/sessions", headers=YOURS))["data"] == []
    assert json_of(client.get("/api/status", headers=YOURS))["sessions"] == 0
    for refused in (
        client.get("/api/sessions/talk", headers=YOURS),
        client.delete("/api/sessions/talk", headers=YOURS),
        client.post("/api/sessions/talk/fork", json={"to": "mine"}, headers=YOURS),
    ):
        assert refused.status_code == 404
    fresh = json_of(complete(client, YOURS, session="talk"))  # a new one, of the same name
    assert fresh["usage"] == first["usage"]
    assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert fresh["choices"][0]["text"] == first["choices"][0]["text"]
    json_of(client.delete("/api/sessions/talk", headers=YOURS))
    assert [each["id"] for each in json_of(client.get("/api/sessions", headers=MINE))["data"]] == ["talk"]
    again = json_of(complete(client, MINE, session="talk"))
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    assert names == {f"{hashlib.sha256(KEYS[0].encode()).hexdigest()[:32]}/talk.safetensors"}
    assert not any(key in name for key in KEYS for name in names)


def test_sessions_stay_with_their_key_after_a_restart(
    keyed: Callable[..., TestClient], checkpoints: Path, folder: Path
) -> None:
    json_of(complete(keyed(), MINE, session="talk"))
    with AsyncEngine([LoadedModel.load(checkpoints / "plain")], sessions=folder) as engine:
        client = TestClient(App(engine, Settings(keys=KEYS)), base_url="http://127.0.0.1")
        assert [each["id"] for each in json_of(client.get("/api/sessions", headers=MINE))["data"]] == ["talk"]
        assert json_of(client.get("/api/sessions", headers=YOURS))["data"] == []
        assert engine.sessions.list() == []


def test_nothing_shows_what_another_key_has_sent(keyed: Callable[..., TestClient]) -> None:
    client = keyed()

    def cached(headers: dict[str, str]) -> int:
        return int(json_of(complete(client, headers))["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert (cached(MINE), cached(MINE)) == (0, len(TEXT["prompt"]))  # type: ignore[arg-type]
    assert (cached(YOURS), cached(YOURS)) == (0, len(TEXT["prompt"]))  # type: ignore[arg-type]
    assert client.post("/api/introspect", json={"model": "plain"}, headers=MINE).status_code == 200
    other = TestClient(client.app, base_url="http://127.0.0.1")
    assert other.post("/api/introspect", json={"model": "plain"}, headers=YOURS).status_code == 200  # its own


def test_shared_keys_have_one_pool(keyed: Callable[..., TestClient], folder: Path) -> None:
    client = keyed(shared=True)
    json_of(complete(client, MINE, session="talk"))
    assert [each["id"] for each in json_of(client.get("/api/sessions", headers=YOURS))["data"]] == ["talk"]
    assert json_of(complete(client, YOURS))["usage"]["prompt_tokens_details"]["cached_tokens"] == len(TEXT["prompt"])  # type: ignore[arg-type]
    assert (folder / "talk.safetensors").is_file()


def test_an_adapter_is_of_the_key_that_loads_it(keyed: Callable[..., TestClient], tmp_path: Path) -> None:
    engine = keyed.engine  # type: ignore[attr-defined]
    client = keyed(adapters=(adapter_folder(tmp_path, engine.models["plain"]),), max_adapters=1)
    body = {"model": "plain", "name": "new", "path": "shifted"}

    def names(headers: dict[str, str]) -> list[str]:
        return [each["id"] for each in json_of(client.get("/v1/models", headers=headers))["data"]]

    json_of(client.post("/api/adapters", json=body, headers=MINE))
    assert names(MINE) == ["plain", "plain:new"]
    assert names(YOURS) == ["plain"] == json_of(client.get("/api/status", headers=YOURS))["models"]
    assert complete(client, YOURS, model="plain:new").status_code == 404
    assert client.get("/v1/models/plain:new", headers=YOURS).status_code == 404
    assert client.delete("/api/adapters/plain/new", headers=YOURS).status_code == 404
    mine = json_of(complete(client, MINE, model="plain:new"))["choices"][0]["text"]
    assert client.post("/api/adapters", json=body, headers=MINE).status_code == 400  # there already
    full = client.post("/api/adapters", json=body | {"name": "more"}, headers=MINE)
    assert (full.status_code, full.json()["error"]["code"]) == (507, "quota_exceeded")
    assert full.headers["x-should-retry"] == "false"
    json_of(client.post("/api/adapters", json=body, headers=YOURS))  # of the same name
    json_of(client.delete("/api/adapters/plain/new", headers=MINE))
    assert (names(MINE), names(YOURS)) == (["plain"], ["plain", "plain:new"])
    assert json_of(complete(client, YOURS, model="plain:new"))["choices"][0]["text"] == mine
    json_of(client.delete("/api/adapters/plain/new", headers=YOURS))


def test_an_adapter_of_the_start_is_for_all_and_nobody_unloads_it(
    keyed: Callable[..., TestClient], tmp_path: Path
) -> None:
    engine = keyed.engine  # type: ignore[attr-defined]
    folder = adapter_folder(tmp_path, engine.models["plain"])
    client = keyed(adapters=(folder,))
    engine.load_adapter("plain", "given", folder / "shifted")
    for headers in (MINE, YOURS):
        assert complete(client, headers, model="plain:given").status_code == 200
        assert client.delete("/api/adapters/plain/given", headers=headers).status_code == 404
        body = {"model": "plain", "name": "given", "path": "shifted"}
        assert client.post("/api/adapters", json=body, headers=headers).status_code == 400
    engine.unload_adapter("plain", "given")


def test_quotas_are_of_each_key(keyed: Callable[..., TestClient]) -> None:
    client = keyed()
    for name in ("one", "two"):
        json_of(complete(client, MINE, session=name))
    for refused in (
        complete(client, MINE, session="three"),
        client.post("/api/sessions/one/fork", json={"to": "three"}, headers=MINE),
    ):
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (507, "quota_exceeded")
        assert "as many as are allowed (delete some)" in error["message"]
    json_of(complete(client, MINE, session="two"))  # what there is goes on
    json_of(complete(client, YOURS, session="three"))
    json_of(client.delete("/api/sessions/one", headers=MINE))
    json_of(client.post("/api/sessions/two/fork", json={"to": "three"}, headers=MINE))


def test_requests_at_once_are_of_each_key(keyed: Callable[..., TestClient]) -> None:
    client = keyed()
    refused = complete(client, MINE, n=4)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "this API key has 3 requests at once" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert complete(client, YOURS, n=3).status_code == 200
    assert complete(client, MINE, n=3).status_code == 200  # the refused request has left nothing behind
    shared = keyed(shared=True)
    assert complete(shared, MINE, n=4).status_code == 200

"""What each API key sees of the figures: its own, and with `--shared` or as an admin those of all."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.app import App
from synthe_core.serving.api.settings import Settings
from tests.serving.api.test_state import json_of

KEYS = ("a" * 32, "b" * 32)
ADMIN = "c" * 32
MINE, YOURS, ADMINS = ({"Authorization": f"Bearer {key}"} for key in (*KEYS, ADMIN))
PROMPT = "the secret of the sea"
CACHE = ("entries", "bytes", "hits", "misses", "tokens_saved")


@pytest.fixture
def keyed(checkpoints: Path) -> Iterator[Callable[..., TestClient]]:
    """A server of two keys and one of an admin, over an engine of its own."""
    with AsyncEngine([LoadedModel.load(checkpoints / "plain")]) as engine:

        def make(**settings: Any) -> TestClient:
            app = App(engine, Settings(**{"keys": KEYS, "admin_keys": (ADMIN,), **settings}))
            return TestClient(app, base_url="http://127.0.0.1")

        make.engine = engine  # type: ignore[attr-defined]
        yield make


def complete(client: TestClient, headers: dict[str, str], **more: Any) -> None:
    body = {"model": "plain", "prompt": PROMPT, "max_tokens": 3, "temperature": 0, **more}
    json_of(client.post("/v1/completions", json=body, headers=headers))


def status(client: TestClient, headers: dict[str, str]) -> dict[str, Any]:
    return dict(json_of(client.get("/api/status", headers=headers)))


def metrics(client: TestClient, headers: dict[str, str]) -> dict[str, float]:
    """The samples of /metrics, but for those of the engine's status and of the requests for the figures themselves."""
    text = client.get("/metrics", headers=headers).text
    samples = re.findall(r"^(synthe_(?!engine)\S+?(?:\{.*?\})?) (\S+)$", text, re.M)
    return {
        name: float(value)
        for name, value in samples
        if "_created" not in name and "/metrics" not in name and "/api/status" not in name and "_bucket" not in name
    }


def test_a_key_sees_its_own_figures(keyed: Callable[..., TestClient]) -> None:
    client = keyed()
    nothing = status(client, YOURS), metrics(client, YOURS)
    complete(client, MINE)
    complete(client, MINE, n=2, seed=1)
    client.post("/v1/completions", json={"model": "plain"}, headers=MINE)  # an error
    now = status(client, YOURS), metrics(client, YOURS)
    assert {**now[0], "uptime": 0} == {**nothing[0], "uptime": 0}
    assert now[1] == nothing[1] == {}
    assert now[0]["scope"] == "key" and now[0]["requests"] == 0 and not any(now[0]["cache"][name] for name in CACHE)
    mine = status(client, MINE)
    assert (mine["requests"], mine["prompt_tokens"], mine["written_tokens"]) == (3, len(PROMPT), 9)
    assert mine["cached_tokens"] == 2 * len(PROMPT) and mine["cache"]["hits"] == 2 and mine["cache"]["entries"] > 0
    samples = metrics(client, MINE)
    assert samples['synthe_written_tokens_total{model="plain"}'] == 9
    assert samples['synthe_http_requests_total{method="POST",path="/v1/completions",status="400"}'] == 1
    assert samples['synthe_time_to_first_token_seconds_count{model="plain"}'] == 3


@pytest.mark.parametrize("shared", [False, True])
def test_all_figures_are_the_sum_of_the_keys(keyed: Callable[..., TestClient], shared: bool) -> None:
    """An admin sees them, and with shared keys everybody; a request without a key counts too."""
    client = keyed(shared=shared)
    complete(client, MINE)
    complete(client, YOURS, n=2)
    complete(client, ADMINS)
    assert client.get("/v1/models").status_code == 401
    views = [status(client, headers) for headers in (MINE, YOURS, ADMINS)]
    samples = [metrics(client, headers) for headers in (MINE, YOURS, ADMINS)]
    written = 'synthe_written_tokens_total{model="plain"}'
    refused = 'synthe_http_requests_total{method="GET",path="/v1/models",status="401"}'
    assert views[2]["scope"] == "all" and views[2]["requests"] == 4 and views[2]["written_tokens"] == 12
    assert samples[2][written] == 12 and samples[2][refused] == 1
    if shared:
        assert [view["requests"] for view in views] == [4, 4, 4]
        assert samples[0] == samples[1] == samples[2]
        return
    assert [view["requests"] for view in views[:2]] == [1, 2]
    assert [each[written] for each in samples[:2]] == [3, 6] and refused not in samples[0]
    engine = keyed.engine.engine  # type: ignore[attr-defined]
    own = [engine.prefix_cache.stats(owner) for owner in engine.metrics._owned]
    assert len(own) == 3
    whole = engine.prefix_cache.stats()
    assert {name: sum(each[name] for each in own) for name in CACHE} == {name: whole[name] for name in CACHE}


def test_a_server_without_keys_shows_all(keyed: Callable[..., TestClient]) -> None:
    client = keyed(keys=(), admin_keys=())
    complete(client, {})
    assert status(client, {})["scope"] == "all" and status(client, {})["requests"] == 1
    assert metrics(client, {})['synthe_written_tokens_total{model="plain"}'] == 3


def test_an_admin_has_a_key_like_others(keyed: Callable[..., TestClient]) -> None:
    """Its conversations and cached states are its own, and it does not see those of others."""
    client = keyed(keys=())
    complete(client, ADMINS, session="talk")
    assert [each["id"] for each in json_of(client.get("/api/sessions", headers=ADMINS))["data"]] == ["talk"]
    assert client.get("/api/sessions", headers=MINE).status_code == 401
    client = keyed()
    assert json_of(client.get("/api/sessions", headers=MINE))["data"] == []
    complete(client, MINE, session="secret")
    assert [each["id"] for each in json_of(client.get("/api/sessions", headers=ADMINS))["data"]] == ["talk"]
    assert status(client, ADMINS)["sessions"] == 1


def test_load_is_of_each_key(keyed: Callable[..., TestClient]) -> None:
    """Requests that run and wait, and the bytes of their states."""
    client, engine = keyed(), keyed.engine  # type: ignore[attr-defined]
    begun, release = threading.Event(), threading.Event()
    owner = "o" * 32

    def hold() -> None:
        begun.set()
        assert release.wait(60)

    holding = engine.call(hold)
    assert begun.wait(60)
    try:
        waiting = engine.with_model("plain", [1, 2], lambda model: None, owner)
        assert engine.status(owner)["waiting"] == engine.status()["waiting"] == 1
        assert status(client, MINE)["waiting"] == engine.status("p" * 32)["waiting"] == 0
        assert status(client, ADMINS)["waiting"] == 1
    finally:
        release.set()
    holding.result(60)
    waiting.result(60)
    assert engine.status(owner)["waiting"] == 0 and not engine.engine.admission._waiting

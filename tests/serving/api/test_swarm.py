"""A swarm behind OpenAI's protocol: routed, streamed, attributed, rated; users see nothing of each other."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.serving.api import responses
from synthe_core.serving.api.app import App
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from synthe_core.swarm.models import load_models
from synthe_core.swarm.team import Swarm
from tests.adapters.conftest import base  # noqa: F401
from tests.paths import ROOT
from tests.processes import run_program
from tests.swarm.conftest import folder  # noqa: F401
from tests.swarm.test_team import OPTIONS, set_keys

KEYS = ("a" * 32, "b" * 32)


@pytest.fixture
def swarm(folder) -> Iterator[Swarm]:  # noqa: F811
    folder = set_keys(folder, margin="1", threshold="0", explore="0")
    with AsyncEngine(load_models(folder), **OPTIONS) as engine:
        opened = Swarm(folder, engine)
        yield opened
        opened.close()


@pytest.fixture
def client(swarm: Swarm) -> TestClient:
    return TestClient(App(swarm.engine, Settings(), swarm), base_url="http://127.0.0.1")


def body(text: str = "count", model: str = "swarm", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, "seed": 1, **more}


def test_models_are_the_swarm_and_each_specialist(client):
    names = [each["id"] for each in client.get("/v1/models").json()["data"]]
    assert names == ["swarm", "python", "maths", "history", "base", "base:python"]
    for name in names:
        model = responses.Model.model_validate(client.get(f"/v1/models/{name}").json())
        assert model.id == name and model.parent == (None if name == "base" else "base")
        assert model.synthe.swarm == (not name.startswith("base"))
    assert client.get("/api/status").json()["models"] == names


def test_a_reply_says_who_answered_and_with_what_confidence(client, swarm):
    reply = client.post("/v1/chat/completions", json=body()).json()
    parsed = responses.ChatCompletion.model_validate(reply)
    facts = parsed.synthe
    assert facts is not None and facts.by in facts.routing.specialists and len(facts.drafts) == 2
    assert 0 < facts.confidence < 1 and facts.contradictions == [] and facts.routing.why
    assert parsed.choices[0].message.content == swarm.record.answers.get(facts.answer_id).text
    assert parsed.usage.completion_tokens == 16 and parsed.model == "swarm"
    alone = client.post("/v1/chat/completions", json=body(model=facts.by)).json()
    assert alone["choices"][0]["message"]["content"] == parsed.choices[0].message.content
    assert alone["synthe"]["by"] == facts.by
    plain = client.post("/v1/chat/completions", json=body(model="base")).json()
    assert "synthe" not in plain


def test_openai_s_client_streams(swarm):
    with Server(swarm.engine, Settings(), swarm=swarm) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        whole = client.chat.completions.create(**body(), temperature=0)
        chunks = list(client.chat.completions.create(**body(), temperature=0, stream=True))
        assert "".join(each.choices[0].delta.content or "" for each in chunks) == whole.choices[0].message.content
        assert chunks[0].synthe["routing"]["specialists"] == whole.synthe["routing"]["specialists"]
        drafts = [each.synthe["draft"] for each in chunks if "draft" in (getattr(each, "synthe", None) or {})]
        assert {each["specialist"] for each in drafts} == set(whole.synthe["routing"]["specialists"])
        assert chunks[-1].choices[0].finish_reason == "length" and chunks[-1].synthe["by"] == whole.synthe["by"]
        single = list(
            client.chat.completions.create(**body(model="maths"), stream=True, stream_options={"include_usage": True})
        )
        assert sum(bool(each.choices and each.choices[0].delta.content) for each in single) > 3
        assert single[-1].usage.completion_tokens == 8


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"n": 2}, "one answer"),
        ({"session": "s"}, "session"),
        ({"stop": "x"}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"guided_choice": ["a", "b"]}, "grammar"),
        ({"response_format": {"type": "json_object"}}, "schema"),
        ({"synthesis": "mix"}, "synthesis"),
        ({"model": "pyton"}, "no such model"),
        ({"model": "base", "synthesis": "best"}, "no swarm"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no request"),
    ],
)
def test_what_a_swarm_cannot_do_is_refused(client, swarm, more, word):
    for stream in (False, True):
        reply = client.post("/v1/chat/completions", json={**body(), **more, "stream": stream})
        assert reply.status_code in (400, 404) and word in reply.json()["error"]["message"]
    assert swarm.record.answers.count() == 0


def test_ratings_come_from_who_got_the_answer(swarm):
    settings = Settings(keys=KEYS)
    client = TestClient(App(swarm.engine, settings, swarm), base_url="http://127.0.0.1")
    one, other = ({"Authorization": f"Bearer {key}"} for key in KEYS)
    reply = client.post("/v1/chat/completions", json=body(user="ann"), headers=one).json()
    rating = {"answer_id": reply["synthe"]["answer_id"], "score": 1, "user": "ann"}
    for headers, given in ((other, rating), (one, {**rating, "user": "bob"}), (one, {**rating, "answer_id": "x"})):
        refused = client.post("/api/feedback", json=given, headers=headers)
        assert refused.status_code == 404 and "no answer has the id" in refused.json()["error"]["message"]
    correction = {**rating, "score": -1, "right": "maths", "correction": "Four."}
    assert client.post("/api/feedback", json=correction, headers=one).json()["success"] == 0
    (pair,) = swarm.feedback.pairs()
    assert (pair.chosen, pair.specialist, pair.state) == ("Four.", reply["synthe"]["by"], "new")
    signal = {"answer_id": rating["answer_id"], "user": "ann", "signal": "copied"}
    assert client.post("/api/feedback", json=signal, headers=one).json()["success"] is None  # they are off
    for wrong in ({**signal, "score": 1}, {key: signal[key] for key in ("answer_id", "user")}):
        refused = client.post("/api/feedback", json=wrong, headers=one)
        assert refused.status_code == 400 and "or else a signal" in refused.json()["error"]["message"]
    facts = client.get("/api/swarm", headers=one).json()
    assert facts["rated"] == 1 and "base" not in facts and facts["pathways"][0]["answers"] == 1


def test_facts_are_a_user_s_own(swarm):
    settings = Settings(keys=KEYS)
    client = TestClient(App(swarm.engine, settings, swarm), base_url="http://127.0.0.1")
    one, other = ({"Authorization": f"Bearer {key}"} for key in KEYS)
    said = body("I live in Paris.", user="ann", conversation="c")
    assert client.post("/v1/chat/completions", json=said, headers=one).status_code == 200
    for headers, user, knows in (
        (one, "ann", True),
        (one, "bob", False),
        (other, "ann", False),
        (one, None, False),
    ):
        given = body("Where do I live?", **({"user": user} if user else {}))
        reply = client.post("/v1/chat/completions", json=given, headers=headers).json()
        assert bool(reply["synthe"]["facts"]) is knows


def test_a_server_without_a_swarm_needs_no_database():
    program = (
        "import sys\n"
        "sys.modules['sqlalchemy'] = None\n"
        "import synthe_core.serving.api.server\n"
        "import synthe_cli.commands.serve_run\n"
        "print('ready')\n"
    )
    done = run_program([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "ready\n", done.stderr


def test_without_a_swarm_its_paths_say_so(swarm):
    client = TestClient(App(swarm.engine, Settings()), base_url="http://127.0.0.1")
    assert client.get("/api/swarm").status_code == 404
    assert client.post("/api/feedback", json={"answer_id": "a", "score": 1}).status_code == 404
    assert client.post("/v1/chat/completions", json=body()).status_code == 404


def test_a_client_that_leaves_ends_its_answer(swarm):
    with Server(swarm.engine, Settings(max_tokens=100_000), swarm=swarm) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        stream = client.chat.completions.create(**{**body(model="maths"), "max_tokens": 50_000}, stream=True)
        for _ in range(3):
            next(stream)
        stream.close()
        done = threading.Event()
        for _ in range(6000):
            if swarm.engine.status()["live"] == 0:
                break
            done.wait(0.05)
        assert swarm.engine.status()["live"] == 0 and swarm.record.answers.count() == 0

"""Roles of API keys at a swarm: who may review, start learning, roll back and make specialists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.serving.api import responses
from synthe_core.serving.api.app import App
from synthe_core.serving.api.endpoints import ENDPOINTS
from synthe_core.serving.api.settings import ROLES, Settings
from synthe_core.swarm.feedback.pairs import Pairs, PairSource
from synthe_core.swarm.learning.background import BackgroundLearning
from synthe_core.swarm.learning.learned_pairs import LearnedPairs
from synthe_core.swarm.learning.plan import Plan
from synthe_core.swarm.learning.promotion import Promotions
from synthe_core.swarm.models import load_models
from synthe_core.swarm.spawning.proposals import Proposal, Proposals
from synthe_core.swarm.team import Swarm
from tests.adapters.conftest import base, saved  # noqa: F401
from tests.swarm.conftest import folder  # noqa: F401
from tests.swarm.learning.conftest import approve, rows
from tests.swarm.test_team import OPTIONS, set_keys

KEYS = {"user": "u" * 32, "reviewer": "r" * 32, "admin": "a" * 32}
HEADERS = {role: {"Authorization": f"Bearer {key}"} for role, key in KEYS.items()}


@pytest.fixture
def swarm(folder) -> Iterator[Swarm]:  # noqa: F811
    folder = set_keys(folder, margin="1", threshold="0", explore="0", min_pairs="10")
    with AsyncEngine(load_models(folder), **OPTIONS) as engine:
        opened = Swarm(folder, engine)
        yield opened
        opened.close()


@pytest.fixture
def client(swarm: Swarm) -> TestClient:
    settings = Settings(keys=(KEYS["user"],), reviewer_keys=(KEYS["reviewer"],), admin_keys=(KEYS["admin"],))
    return TestClient(App(swarm.engine, settings, swarm), base_url="http://127.0.0.1")


def corrected(client: TestClient, text: str = "count") -> int:
    """The id of the pair of a user's correction."""
    body = {"model": "swarm", "messages": [{"role": "user", "content": text}], "max_tokens": 4, "seed": 1}
    reply = client.post("/v1/chat/completions", json=body, headers=HEADERS["user"]).json()
    given = {"answer_id": reply["synthe"]["answer_id"], "correction": f"Better than {text}."}
    assert client.post("/api/feedback", json=given, headers=HEADERS["user"]).status_code == 200
    every = client.get("/api/swarm/pairs", headers=HEADERS["reviewer"]).json()
    return int(responses.SwarmPairs.model_validate(every).data[-1].id)


@pytest.mark.parametrize("endpoint", [each for each in ENDPOINTS if each.role != "user"], ids=lambda each: each.path)
def test_every_endpoint_of_a_role_refuses_those_below(client: TestClient, swarm: Swarm, endpoint: Any) -> None:
    path = endpoint.path.replace("{pair}", "1").replace("{name}", "x")
    for role in ROLES:
        reply = client.request(endpoint.method, path, headers=HEADERS[role], json={})
        if ROLES.index(role) < ROLES.index(endpoint.role):
            assert reply.status_code == 403 and endpoint.role in reply.json()["error"]["message"]
            assert reply.json()["error"]["code"] == "insufficient_role"
        else:
            assert reply.status_code != 403
    assert client.request(endpoint.method, path, json={}).status_code == 401
    assert not swarm.folder.ledger()[1:] and not swarm.learning_wanted.is_set()


@pytest.mark.parametrize("role", ROLES)
def test_without_keys_the_server_says_what_everybody_may(swarm: Swarm, role: Any) -> None:
    client = TestClient(App(swarm.engine, Settings(keyless_role=role), swarm), base_url="http://127.0.0.1")
    assert client.get("/api/swarm/pairs").status_code == (403 if role == "user" else 200)
    assert client.post("/api/swarm/learn").status_code == (400 if role == "admin" else 403)
    assert Settings().keyless_role == "user"


def test_pairs_are_reviewed_by_a_reviewer(client: TestClient, swarm: Swarm) -> None:
    first, second = corrected(client), corrected(client, "sums")
    assert client.get("/api/swarm/pairs?state=new&limit=1", headers=HEADERS["admin"]).json()["data"][0]["id"] == first
    approval = {"state": "approved", "chosen": "Seven."}
    reply = client.post(f"/api/swarm/pairs/{first}", json=approval, headers=HEADERS["reviewer"])
    assert responses.SwarmPair.model_validate(reply.json()).chosen == "Seven." and reply.json()["state"] == "approved"
    client.post(f"/api/swarm/pairs/{second}", json={"state": "rejected"}, headers=HEADERS["reviewer"])
    assert [each.state for each in swarm.feedback.pairs()] == ["approved", "rejected"]
    assert swarm.feedback.pairs()[0].reviewer not in (None, "operator")
    for path, given, status, word in (
        ("999", {"state": "approved"}, 404, "no such pair"),
        (first, {"state": "learned"}, 400, "state"),
        (first, {"state": "approved", "why": "x"}, 400, "why"),
    ):
        reply = client.post(f"/api/swarm/pairs/{path}", json=given, headers=HEADERS["reviewer"])
        assert reply.status_code == status and word in reply.json()["error"]["message"], reply.text
    for query, word in (
        ("state=gone", "state"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=" + "9" * 50, "limit"),
    ):
        reply = client.get(f"/api/swarm/pairs?{query}", headers=HEADERS["reviewer"])
        assert reply.status_code == 400 and word in reply.json()["error"]["message"]


def test_learning_is_started_and_rolled_back_by_an_admin(client, swarm, base, tmp_path):  # noqa: F811
    refused = client.post("/api/swarm/learn", headers=HEADERS["admin"])
    assert refused.status_code == 400 and "no specialist has 10 approved pairs" in refused.json()["error"]["message"]
    pairs = Pairs(swarm.store)
    approve(pairs, rows(range(10)))
    learning = BackgroundLearning(swarm.folder, swarm.store, ["true"])
    assert not learning.consider(0.0)
    reply = client.post("/api/swarm/learn", headers=HEADERS["admin"])
    assert reply.json() == {"specialists": ["maths"]} and swarm.learning_wanted.is_set()
    assert learning.consider(0.0, wanted=True)
    learning.close()
    path = saved(tmp_path / "new", base, {"rank": 3}, seed=8).path
    before = swarm.digest("maths")
    plan = Plan("maths", None, (), (), (), ())
    Promotions(swarm.folder, LearnedPairs(swarm.store, pairs)).promote(plan, path, base, {"held_out": {}})
    swarm.follow_adapters()
    assert swarm.digest("maths") != before
    listed = client.get("/api/swarm/versions", headers=HEADERS["reviewer"]).json()
    (version,) = responses.SwarmVersions.model_validate(listed).data
    assert (version.specialist, version.parent, version.current) == ("maths", None, True)
    reply = client.post("/api/swarm/rollback", json={"specialist": "maths"}, headers=HEADERS["admin"])
    assert reply.json() == {"specialist": "maths", "adapter": None, "digest": None} and swarm.digest("maths") == before
    assert not client.get("/api/swarm/versions", headers=HEADERS["reviewer"]).json()["data"][0]["current"]
    again = client.post("/api/swarm/rollback", json={"specialist": "maths"}, headers=HEADERS["admin"])
    assert again.status_code == 400 and "nothing that could be rolled back" in again.json()["error"]["message"]
    lines = client.get("/api/swarm/history?specialist=maths", headers=HEADERS["reviewer"]).json()["data"]
    assert [each["event"] for each in lines] == ["promoted", "rolled back"]
    newest = client.get("/api/swarm/history?specialist=maths&limit=1", headers=HEADERS["reviewer"]).json()["data"]
    assert [each["event"] for each in newest] == ["rolled back"]
    for query, status in (("specialist=mats", 404), ("limit=0", 400), ("limit=1001", 400), ("limit=x", 400)):
        assert client.get(f"/api/swarm/history?{query}", headers=HEADERS["reviewer"]).status_code == status


def test_proposed_specialists_are_decided_by_an_admin(client: TestClient, swarm: Swarm) -> None:
    proposals = Proposals(swarm.folder, swarm.store)
    for name in ("tax", "roses"):
        proposals.add(Proposal(0, "base", name, (name, "more"), "You are an expert.", 20, 30.0), np.ones(4))
    listed = client.get("/api/swarm/proposals", headers=HEADERS["reviewer"]).json()
    assert [each.name for each in responses.SwarmProposals.model_validate(listed).data] == ["tax", "roses"]
    made = client.post("/api/swarm/proposals/tax", json={"state": "approved"}, headers=HEADERS["admin"])
    assert made.json()["state"] == "approved" and "tax" in swarm.models
    client.post("/api/swarm/proposals/roses", json={"state": "rejected"}, headers=HEADERS["admin"])
    assert client.get("/api/swarm/proposals", headers=HEADERS["reviewer"]).json()["data"] == []
    assert (
        client.post("/api/swarm/proposals/gone", json={"state": "approved"}, headers=HEADERS["admin"]).status_code
        == 404
    )
    body = {"model": "tax", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert client.post("/v1/chat/completions", json=body, headers=HEADERS["user"]).json()["synthe"]["by"] == "tax"


def test_no_request_unloads_a_specialist(swarm: Swarm) -> None:
    settings = Settings(keys=(KEYS["user"],), shared=True)
    client = TestClient(App(swarm.engine, settings, swarm), base_url="http://127.0.0.1")
    reply = client.delete("/api/adapters/base/python", headers=HEADERS["user"])
    assert reply.status_code == 403 and "is a specialist of the swarm" in reply.json()["error"]["message"]
    assert "base:python" in swarm.engine.registry.names()


def test_pairs_come_in_pages(client: TestClient, swarm: Swarm) -> None:
    pairs = Pairs(swarm.store)
    ids = [pairs.add("", f"Say {n}", "Yes.", "No.", source=PairSource.CORRECTION).id for n in range(5)]
    seen, after = [], 0
    while page := client.get(f"/api/swarm/pairs?limit=2&after={after}", headers=HEADERS["reviewer"]).json()["data"]:
        seen += [each["id"] for each in page]
        after = seen[-1]
    assert seen == ids


@pytest.mark.parametrize("id", ["abc", "1.0", "-1", "%00", "%D9%A3", "9" * 19, "1e3"])
def test_an_id_that_is_no_number_is_refused_in_one_line(client: TestClient, id: str) -> None:
    for path, body in (("pairs", {"state": "approved"}), ("facts", {"ended": True})):
        reply = client.post(f"/api/swarm/{path}/{id}", json=body, headers=HEADERS["admin"])
        assert reply.status_code == 400 and reply.json()["error"]["message"].endswith("a number of at most 18 digits")
    for name in ("limit", "after"):
        reply = client.get(f"/api/swarm/pairs?{name}={id}", headers=HEADERS["admin"])
        assert reply.status_code == 400 and reply.json()["error"]["param"] == name


def test_a_better_answer_differs_from_the_worse_one(client: TestClient, swarm: Swarm) -> None:
    pair = Pairs(swarm.store).add("", "Say it", "Yes.", "No, no.", source=PairSource.CORRECTION)
    body = {"state": "approved", "chosen": " No,  no.\n"}
    reply = client.post(f"/api/swarm/pairs/{pair.id}", json=body, headers=HEADERS["reviewer"])
    assert reply.status_code == 400 and "the same" in reply.json()["error"]["message"]
    assert swarm.feedback.pairs()[0].state == "new"

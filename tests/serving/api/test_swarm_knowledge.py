"""What a swarm knows, over HTTP: searched, corrected, trusted, exported and deleted, by whom it belongs to."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from synthe_core.serving.api import responses
from synthe_core.serving.api.app import App
from synthe_core.serving.api.settings import Settings
from synthe_core.swarm.knowledge.fact import Claim, Source
from synthe_core.swarm.team import Swarm
from tests.adapters.conftest import base  # noqa: F401
from tests.serving.api.test_swarm_roles import HEADERS, KEYS, client, swarm  # noqa: F401
from tests.swarm.conftest import folder  # noqa: F401

OTHER = "o" * 32
FACTS = "/api/swarm/facts"


@pytest.fixture
def users(swarm: Swarm) -> TestClient:  # noqa: F811
    """Two keys of users, a reviewer and an admin."""
    keys = {"keys": (KEYS["user"], OTHER), "reviewer_keys": (KEYS["reviewer"],), "admin_keys": (KEYS["admin"],)}
    return TestClient(App(swarm.engine, Settings(**keys), swarm), base_url="http://127.0.0.1")


def say(client: TestClient, text: str, role: str = "user", **more: Any) -> None:  # noqa: F811
    messages = [{"role": "user", "content": text}]
    body = {"model": "maths", "messages": messages, "max_tokens": 2, "conversation": "one", **more}
    assert client.post("/v1/chat/completions", json=body, headers=HEADERS[role]).status_code == 200


def facts(client: TestClient, query: str = "", role: str = "user", **more: str) -> list[responses.SwarmFact]:  # noqa: F811
    reply = client.get(FACTS, params={"query": query, **more}, headers=HEADERS[role])
    assert reply.status_code == 200, reply.text
    return responses.SwarmFacts.model_validate(reply.json()).data


def refused(reply: Any, status: int, word: str) -> None:
    assert reply.status_code == status and word in reply.json()["error"]["message"], reply.text
    assert "\n" not in reply.json()["error"]["message"]


def test_a_key_finds_its_own_facts_and_everybody_s(users: TestClient, swarm: Swarm) -> None:  # noqa: F811
    knowledge = swarm.recollection.knowledge
    knowledge.add("", "the office", "opens at", "9:00")
    knowledge.facts.add("", Claim("the cellar", "holds", "gold"), Source.STATEMENT, trusted=False)
    say(users, "I live in Paris.")
    say(users, "I live in Rome.", user="ann")
    own = facts(users, "where do I live")
    assert [(each.object, each.source, each.trusted, each.shared) for each in own] == [("Paris", "user", True, False)]
    assert [each.object for each in facts(users, "where do I live", user="ann")] == ["Rome"]
    assert [each.object for each in facts(users, "home")][:1] in ([], ["Paris"])  # by meaning, never another's
    assert {each.object for each in facts(users)} == {"Paris", "9:00"}
    assert {each.object for each in facts(users, role="reviewer")} == {"9:00", "gold"}
    assert {each.object for each in facts(users, "live", role="admin")} <= {"9:00", "gold"}  # no user's
    header = {"Authorization": f"Bearer {OTHER}"}
    assert [each["object"] for each in users.get(FACTS, headers=header).json()["data"]] == ["9:00"]
    assert len(facts(users, limit="1")) == 1


def test_a_correction_keeps_the_history(users: TestClient) -> None:
    say(users, "I live in Paris.")
    (old,) = facts(users, "live")
    reply = users.post(f"{FACTS}/{old.id}", json={"object": "Lyon"}, headers=HEADERS["user"])
    new = responses.SwarmFact.model_validate(reply.json())
    assert (new.object, new.trusted) == ("Lyon", True) and [each.object for each in facts(users, "live")] == ["Lyon"]
    past = {each.id: each for each in facts(users, "live", history="true")}
    assert past[old.id].superseded_by == new.id and past[old.id].valid_until is not None
    ended = users.post(f"{FACTS}/{new.id}", json={"ended": True}, headers=HEADERS["user"])
    assert ended.json()["valid_until"] is not None and facts(users, "live") == []
    assert len(facts(users, history="true")) == 2


def test_whose_a_fact_is_says_who_may_change_it(users: TestClient, swarm: Swarm) -> None:  # noqa: F811
    knowledge = swarm.recollection.knowledge
    everybody = knowledge.add("", "the office", "opens at", "9:00").fact.id
    doubtful = knowledge.facts.add("", Claim("the cellar", "holds", "gold"), Source.STATEMENT, trusted=False).fact.id
    say(users, "I live in Paris.")
    (own,) = (each.id for each in facts(users, "live"))
    for fact in (everybody, own, 999):
        reply = users.post(f"{FACTS}/{fact}", json={"ended": True}, headers={"Authorization": f"Bearer {OTHER}"})
        refused(reply, 404, "no such fact")
    refused(users.post(f"{FACTS}/{own}", json={"trusted": True}, headers=HEADERS["user"]), 403, "reviewer")
    refused(users.post(f"{FACTS}/{own}", json={"ended": True}, headers=HEADERS["admin"]), 404, "no such fact")
    changed = users.post(f"{FACTS}/{everybody}", json={"object": "10:00"}, headers=HEADERS["admin"]).json()
    assert (changed["object"], changed["source"], changed["shared"]) == ("10:00", "operator", True)
    assert users.post(f"{FACTS}/{doubtful}", json={"trusted": True}, headers=HEADERS["admin"]).json()["trusted"]
    assert "gold" in {each.object for each in facts(users)}
    for body, word in (({}, "one of"), ({"ended": True, "object": "x"}, "one of"), ({"ended": False}, "ended")):
        refused(users.post(f"{FACTS}/{own}", json=body, headers=HEADERS["user"]), 400, word)


def test_a_user_s_data_are_exported_and_deleted_by_their_key(users: TestClient, swarm: Swarm) -> None:  # noqa: F811
    say(users, "I live in Paris.")
    say(users, "I live in Rome.", user="ann")
    data = responses.SwarmUserData.model_validate(users.get("/api/swarm/data", headers=HEADERS["user"]).json())
    assert [each["object"] for each in data.facts] == ["Paris"] and len(data.tables["answers"]) == 1
    assert users.get("/api/swarm/data", headers={"Authorization": f"Bearer {OTHER}"}).json()["facts"] == []
    reply = users.delete("/api/swarm/data", headers=HEADERS["user"]).json()
    assert reply["deleted"]["facts"] == 1 and reply["deleted"]["answers"] == 1
    assert facts(users, history="true") == [] and len(facts(users, user="ann")) == 1
    assert swarm.record.answers.count() == 1


@pytest.mark.parametrize("role", ["user", "admin"])
def test_without_keys_only_an_admin_names_users(swarm: Swarm, role: Any) -> None:  # noqa: F811
    keyless = TestClient(App(swarm.engine, Settings(keyless_role=role), swarm), base_url="http://127.0.0.1")
    fact = swarm.recollection.knowledge.add("", "the office", "opens at", "9:00").fact.id
    swarm.recollection.knowledge.add("ann", "user", "lives in", "Paris")
    assert [each["object"] for each in keyless.get(FACTS).json()["data"]] == ["9:00"]
    replies = [
        keyless.get(FACTS, params={"user": "ann"}),
        keyless.post(f"{FACTS}/{fact}", json={"ended": True}),
        keyless.get("/api/swarm/data", params={"user": "ann"}),
        keyless.delete("/api/swarm/data", params={"user": "ann"}),
    ]
    for reply in replies:
        assert reply.status_code == 200 if role == "admin" else not refused(reply, 403, "admin")
    for method in ("GET", "DELETE"):  # everybody's facts are nobody's own
        refused(keyless.request(method, "/api/swarm/data"), 400, "name whose data")


@pytest.mark.parametrize(
    "given",
    [
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "x"},
        {"limit": "9" * 40},
        {"history": "yes"},
        {"query": "x" * 2001},
        {"user": "x" * 1001},
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused_in_one_line(users: TestClient, given: dict[str, str]) -> None:
    refused(users.get(FACTS, params=given, headers=HEADERS["user"]), 400, next(iter(given)))


def test_what_people_write_comes_back_as_they_wrote_it(users: TestClient, swarm: Swarm) -> None:  # noqa: F811
    image = "<img src=x onerror=alert(1)>"
    swarm.recollection.knowledge.add("", image, f"is {image}", f'"{image}"')
    reply = users.get(FACTS, params={"query": 'img " OR * NEAR('}, headers=HEADERS["user"])
    assert [each["subject"] for each in reply.json()["data"]] == [image]
    assert reply.headers["content-type"] == "application/json" and reply.headers["x-content-type-options"] == "nosniff"


def test_an_empty_swarm_has_empty_lists(client: TestClient) -> None:  # noqa: F811
    assert facts(client) == [] and facts(client, "anything") == []
    for path in ("versions", "pairs", "proposals"):
        assert client.get(f"/api/swarm/{path}", headers=HEADERS["reviewer"]).json()["data"] == []
    status = responses.SwarmStatus.model_validate(client.get("/api/swarm", headers=HEADERS["user"]).json())
    assert (status.role, status.pathways, status.answers, status.calibration_error) == ("user", [], 0, None)
    for each in status.specialists:
        assert each["domains"] == {} and each["calibration_error"] is None
        low, high = each["success"]["interval"]
        assert 0 < low < each["success"]["mean"] < high < 1

"""Requests that keep failing call for a specialist: found, named by their own words, approved, taken up at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthe_core.errors import InputError, WorkError
from synthe_core.swarm.answers import Answer, Answers
from synthe_core.swarm.feedback.feedback import Feedback
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.background import BackgroundLearning
from synthe_core.swarm.opening import open_store
from synthe_core.swarm.router.observations import Observation, Observations, observations
from synthe_core.swarm.spawning.clusters import cluster
from synthe_core.swarm.spawning.proposals import Proposals, ProposalState
from synthe_core.swarm.spawning.spawn import prompt_for, propose
from synthe_core.swarm.store import Store
from synthe_core.swarm.team import open_swarm
from synthe_core.swarm.watcher import Watcher
from tests.swarm.test_team import OPTIONS, answered, said, set_keys

HOUR = 3600.0
SUBJECTS = {"tax": 0, "roses": 1, "python": 2}
TEXTS = {
    "tax": "Tax {}: {}",
    "roses": "When do I prune roses of garden {}?",
    "python": "Write a function number {} in python.",
}


ABOUT_TAX = (
    "how much tax do I pay on my income?",
    "which deduction is there for an office at home?",
    "is income of abroad free of tax?",
    "what counts as a deduction from my income?",
)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def swarm(folder: SwarmFolder) -> SwarmFolder:
    return set_keys(folder, min_requests="8", min_hours="5", similarity="0.6")


@pytest.fixture
def store(swarm: SwarmFolder, clock: Clock) -> Any:
    store = Store(swarm.database, clock=clock)
    yield store
    store.close()


def ask(
    store: Store, subject: str, number: int, *, success: float | None = None, confidence: float = 0.8, **more: Any
) -> str:
    """Records a request of that subject: its embedding is the subject's direction, with noise."""
    draw = np.random.default_rng(1000 * SUBJECTS[subject] + number)
    embedding = (np.eye(16)[SUBJECTS[subject]] + 0.05 * draw.normal(size=16)).astype(np.float32)
    text, answer = TEXTS[subject].format(number, ABOUT_TAX[number % 4]), f"{subject} {number}"
    user = more.pop("user", f"user{number % 3}")
    given = Answer(answer, user, "", text, "no", ("python",), "python", "d", confidence, routing=more)
    Answers(store).add(given)
    observations = Observations(store, "base")
    if observations.statistics() is None:
        observations.save_statistics(8, np.zeros(16), np.ones(16))
    observations.add(Observation(text, embedding, {}, {}), user, answer)
    if success is not None:
        Feedback(store).rate(answer, success, user)
    return answer


def fill(store: Store, clock: Clock, count: int = 12, hours: float = 6.0, first: int = 0) -> list[str]:
    """Requests on taxes that fail, among others that do not."""
    made = []
    for number in range(first, first + count):
        made.append(ask(store, "tax", number, success=0.0 if number % 2 else None, confidence=0.2))
        ask(store, "python", number, success=1.0)
        ask(store, "roses", number, confidence=0.7)
        clock.now += hours * HOUR / count
    return made


def writes(text: str) -> Any:
    return lambda question, schema: {"prompt": text}


def test_clusters_are_by_cosine_and_always_the_same():
    draw = np.random.default_rng(0)
    points = np.repeat(np.eye(8)[:3], 10, 0) + 0.05 * draw.normal(size=(30, 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    order = draw.permutation(30)
    labels, centres = cluster(points[order], 0.7)
    assert len(centres) == 3 and all(len(set(labels[order // 10 == each])) == 1 for each in range(3))
    assert np.abs(np.linalg.norm(centres, axis=1) - 1).max() < 1e-9
    assert (cluster(points[order], 0.7)[0] == labels).all()
    assert len(cluster(points, 0.9999)[1]) > 10 and len(cluster(np.zeros((0, 8)), 0.5)[0]) == 0


def test_failing_requests_that_persist_propose_a_specialist(swarm, store, clock):
    fill(store, clock)
    proposals = Proposals(swarm, store)
    (proposal,) = propose(proposals, writes("You are a tax adviser who explains deductions."))
    assert proposal.name == "tax" and proposal.capabilities[:3] == ("tax", "income", "deduction")
    assert (proposal.requests, proposal.state) == (12, "new") and 5 <= proposal.hours < 6
    assert proposal.prompt.startswith("You are a tax adviser")
    assert propose(proposals, writes("x")) == [], "it is proposed once"
    proposals.reject(proposal.name)
    clock.now += HOUR
    fill(store, clock, first=100)
    assert propose(proposals, writes("x")) == [] and proposals.entries(ProposalState.NEW) == []


@pytest.mark.parametrize("case", ["few", "at once", "mostly good", "one user's words"])
def test_what_does_not_persist_proposes_nothing(swarm, store, clock, case):
    if case == "few":
        fill(store, clock, 7)
    elif case == "at once":
        fill(store, clock, 12, hours=1.0)
    elif case == "mostly good":
        fill(store, clock)
        for number in range(100, 120):
            ask(store, "tax", number, success=1.0)
    else:
        for number in range(12):
            user = "ann" if number < 11 else "bob"
            ask(store, "tax" if user == "ann" else "roses", number, success=0.0, user=user)
            clock.now += HOUR
        (proposal,) = Proposals(swarm, store).find()
        assert "tax" in proposal[0].capabilities  # of one user alone there is nobody to keep it from
        for number in range(12, 14):
            ask(store, "tax", number, success=0.0, user="bob")
        text = "My neighbour Zacharias owes tax on income."
        for number in range(20, 24):
            answer = ask(store, "tax", number, success=0.0, user="ann")
            with store.transaction() as connection:
                connection.execute(observations.update().where(observations.c.answer == answer).values(text=text))
        (proposal,) = Proposals(swarm, store).find()
        assert "zacharias" not in proposal[0].capabilities
        return
    assert propose(Proposals(swarm, store), writes("x")) == []


def test_an_approved_specialist_has_the_pairs_of_its_requests(swarm, store, clock):
    made = fill(store, clock)
    feedback = Feedback(store)
    pair = feedback.correct(made[0], "Seven percent.", "user0")
    other = feedback.correct(ask(store, "roses", 50, user="user0"), "In March.", "user0")
    proposals = Proposals(swarm, store)
    (proposal,) = propose(proposals, writes("You are a tax adviser."))
    with pytest.raises(InputError, match="unknown proposed specialist"):
        proposals.approve("gardening")
    spec = proposals.approve(proposal.name)
    assert spec.prompt == "You are a tax adviser." and proposal.name in swarm.spec.specialists
    assert [each.specialist for each in feedback.pairs()] == [proposal.name, "python"]
    assert pair.id != other.id and swarm.ledger()[-1]["event"] == "spawned"
    with pytest.raises(InputError, match="is proposed"):
        proposals.approve(proposal.name)


def test_a_prompt_of_the_base_is_checked():
    terms = ("tax", "income")
    assert prompt_for(terms, writes("You are an adviser.\n You explain.")) == "You are an adviser. You explain."
    plain = prompt_for(terms, writes("Ignore this."))
    assert plain.startswith("You are an expert on tax, income.") and prompt_for(terms, writes("You x\x00" * 9)) == plain

    def fail(*_: Any) -> Any:
        raise WorkError("no whole JSON")

    assert prompt_for(terms, fail) == plain


def test_a_running_swarm_finds_makes_and_takes_up_a_specialist(folder: SwarmFolder, tmp_path: Path) -> None:
    """`spawn: auto` on a real engine: its own requests, its own embeddings, a prompt that the base writes."""
    folder = set_keys(folder, min_requests="4", min_hours="0", similarity="0.2", max_confidence="1", threshold="0")
    text = folder.spec_path.read_text().replace("  mode: propose", "  mode: auto")
    folder.spec_path.write_text(text)
    folder.reload()
    lines: list[str] = []
    with open_swarm(folder, **OPTIONS) as swarm:
        for number in range(8):
            answered(swarm, said(f"How much tax is on income {number} of the office?", user=f"user {number % 2}"))
        watcher = Watcher(swarm, BackgroundLearning(folder, swarm.store, ["false"]), lines.append)
        watcher._busy -= 10
        watcher._requests = swarm.engine.engine.metrics.of("").requests
        watcher.look()
        (name,) = [each for each in folder.spec.specialists if each not in ("python", "maths", "history")]
        assert name not in swarm.models
        watcher.look()
        assert lines[-1] == f"{name} is taken up" and name in swarm.models and name in swarm.names
        assert answered(swarm, said("income tax", specialist=name))[1].by == name
        names = {each.name for each in next(swarm.answer(said("income tax"))).decision.candidates}
        assert names == {"python", "maths", "history", name}
        assert folder.spec.specialists[name].prompt.startswith("You ")
    assert open_store(folder).faults() == []

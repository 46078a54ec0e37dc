"""Knowledge and feedback within a swarm: its embedding finds facts, its verifier judges, feedback teaches it."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest

from synthe_core.errors import InputError
from synthe_core.events import Result
from synthe_core.interop.load import load_model
from synthe_core.swarm.checking.claim_states import claim_states
from synthe_core.swarm.checking.judge import Judge
from synthe_core.swarm.checking.opening import FILE
from synthe_core.swarm.checking.training import train_verifier
from synthe_core.swarm.events import Answered, Routed
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.team import SwarmRequest, open_swarm
from tests.processes import LIMIT


def ask(swarm, text: str, user: str = "ann") -> tuple[Routed, Answered]:
    request = SwarmRequest([{"role": "user", "content": text}], user=user, conversation="one", max_tokens=12, seed=3)
    events = list(swarm.answer(request))
    return events[0], events[-1]


def test_the_base_s_embedding_is_stored_for_the_facts(folder: SwarmFolder) -> None:
    with open_swarm(folder) as swarm:
        ask(swarm, "I live in Paris. I like tea. My dog is Rex.")
        routed, _ = ask(swarm, "Which animal is mine?")
        knowledge = swarm.recollection.knowledge
        with swarm.store.read() as connection:
            rows = connection.exec_driver_sql("SELECT fact, embedder FROM fact_vectors").all()
        assert {row.fact for row in rows} == {fact.id for fact in knowledge.facts.current("ann")}
        assert {row.embedder for row in rows} == {swarm.embed.name}
        assert all(line.startswith("[f") for line in routed.facts)


def test_embeddings_can_be_turned_off(folder: SwarmFolder) -> None:
    path = folder.spec_path
    path.write_text(path.read_text().replace("  embeddings: true", "  embeddings: false"))
    folder.reload()
    with open_swarm(folder) as swarm:
        ask(swarm, "I live in Paris.")
        ask(swarm, "Where is home?")
        with swarm.store.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM fact_vectors").scalar() == 0


def test_the_trained_verifier_runs_on_the_engine_beside_answers(folder: SwarmFolder) -> None:
    data = folder.path.parent / "pairs"
    data.mkdir()
    lines = [
        json.dumps({"premise": f"Ann has {number} dogs.", "hypothesis": text, "label": label}) + "\n"
        for number in range(3, 12)
        for text, label in ((f"Ann has {number} dogs.", "entailment"), ("Ann has no dogs at all.", "contradiction"))
    ]
    for half in ("train", "test"):
        (data / f"dogs.{half}.jsonl").write_text("".join(lines))
    base = load_model(folder.path / folder.base)
    events = list(train_verifier(data, folder.path / FILE, lambda pairs: claim_states(base, pairs), base.digest))
    assert isinstance(events[-1], Result)
    with open_swarm(folder) as swarm:
        knowledge = swarm.recollection.knowledge
        knowledge.add("ann", "Ann", "has", "4 dogs")
        (contradiction,) = knowledge.check("ann", "Well, Ann never has dogs at all.")
        assert contradiction.kind == "judged" and contradiction.score >= events[-1].values["threshold"]
        _, answered = ask(swarm, "How many dogs has Ann?")
        assert answered.text


def test_messages_are_read_by_the_model_in_the_background(folder: SwarmFolder) -> None:
    path = folder.spec_path
    path.write_text(path.read_text().replace("  extraction: patterns", "  extraction: model"))
    folder.reload()
    with open_swarm(folder) as swarm:
        for number in range(3):
            ask(swarm, f"We meet at {number}.")
        unread = swarm.recollection.knowledge.conversations.unread
        end = time.monotonic() + LIMIT
        while unread(1):
            assert time.monotonic() < end
            time.sleep(0.05)
        turns = swarm.recollection.knowledge.conversations.turns("ann", "one")
        assert [turn.read for turn in turns if turn.role == "user"] == [True] * 3
    assert not any(thread.name == "reader" for thread in threading.enumerate())


def test_the_judge_is_what_the_file_says(folder: SwarmFolder) -> None:
    path = folder.spec_path
    for name, kind in (("model", Judge), ("none", type(None)), ("verifier", type(None))):
        path.write_text(re.sub(r"  judge: \w+", f"  judge: {name}", path.read_text()))
        folder.reload()
        with open_swarm(folder) as swarm:
            assert isinstance(swarm.recollection.knowledge.verifier, kind)


def test_an_answer_does_not_fail_for_what_cannot_be_remembered(folder: SwarmFolder) -> None:
    path = folder.spec_path
    path.write_text(re.sub(r"max_facts: \d+", "max_facts: 1", path.read_text()))
    folder.reload()
    with open_swarm(folder) as swarm:
        ask(swarm, "I live in Paris.")
        _, answered = ask(swarm, "I like tea.")
        assert swarm.record.answers.get(answered.answer_id).text == answered.text
        knowledge = swarm.recollection.knowledge
        assert [fact.object for fact in knowledge.facts.current("ann")] == ["Paris"]
        assert len(knowledge.conversations.turns("ann", "one")) == 2


def test_a_conversation_s_name_is_checked_before_anybody_answers(folder: SwarmFolder) -> None:
    with open_swarm(folder) as swarm:
        request = SwarmRequest([{"role": "user", "content": "python"}], conversation="x" * 201)
        with pytest.raises(InputError, match="1 to 200 characters"):
            next(swarm.answer(request))


def test_feedback_teaches_the_swarm(folder: SwarmFolder) -> None:
    with open_swarm(folder) as swarm:
        _, answered = ask(swarm, "Count to three")
        pair = swarm.feedback.correct(answered.answer_id, "one, two, three", "ann")
        assert pair.rejected.split() == answered.text.split()
        assert swarm.record.answers.get(answered.answer_id).success == 0.0
        with pytest.raises(InputError, match="no answer has the id"):
            swarm.feedback.rate(answered.answer_id, 1.0, "eve")

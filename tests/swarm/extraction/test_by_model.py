"""Claims that a model reads: of its schema, in the words of the message, and not trusted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthe_core.errors import WorkError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import Busy
from synthe_core.swarm.checking.judge import Judge
from synthe_core.swarm.extraction.background import BackgroundReader
from synthe_core.swarm.extraction.by_model import SCHEMA, model_claims, read_messages
from synthe_core.swarm.json_writer import json_writer
from synthe_core.swarm.knowledge.fact import Source
from synthe_core.swarm.knowledge.knowledge import Knowledge
from synthe_core.swarm.store import Store
from tests.merging.models import checkpoint
from tests.processes import LIMIT
from tests.swarm.extraction.claims import in_words


class Scripted:
    """A writer with given answers, such as a good model would write."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.questions = list(answers), list[str]()

    def __call__(self, question: str, schema: Mapping[str, Any]) -> Any:
        self.questions.append(question)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def item(subject: str, relation: str, object: str) -> dict[str, str]:
    return {"subject": subject, "relation": relation, "object": object}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_claims_have_their_relations_names_and_the_messages_words() -> None:
    write = Scripted([item("the user", "employed by", "Acme"), item("Eva", "job", "nurse"), item("Eva", "age", "40"),
                      item("Bob", "likes", "Acme"), item("user", "?", "Acme")])  # fmt: skip
    claims = model_claims("I am employed by Acme. Eva is a nurse.", write)
    assert [in_words(claim) for claim in claims] == ["user: works at: Acme", "Eva: occupation: nurse"]
    assert all(claim.functional for claim in claims)
    assert model_claims("```\ncode\n```", write) == []


def test_messages_are_read_once_and_their_claims_wait_for_review(tmp_path: Path) -> None:
    knowledge = Knowledge(Store(tmp_path / "swarm.db"))
    for text in ("My cat is Minka.", "We meet Tom in Rome.", "Nothing here."):
        knowledge.record_turn("ada", "c", "user", text)
    knowledge.record_turn("ada", "c", "assistant", "Tom lives in Oslo.")
    write = Scripted([item("user", "cat", "Minka")], [item("Tom", "lives in", "Rome")], WorkError("no JSON"))
    added = read_messages(knowledge, write)
    assert [each.outcome for each in added] == ["same", "new"]
    assert len(write.questions) == 3 and read_messages(knowledge, write) == []
    (untrusted,) = knowledge.facts.current("ada", trusted=False)
    assert (untrusted.subject, untrusted.source, untrusted.message) == ("Tom", Source.MODEL, 2)
    assert knowledge.retrieve("ada", "Where does Tom live?", 100) == []


def test_a_thread_reads_when_the_engine_is_idle_and_tries_again_after_a_refusal(tmp_path: Path) -> None:
    knowledge = Knowledge(Store(tmp_path / "swarm.db"))
    knowledge.record_turn("ada", "c", "user", "We meet Tom in Rome.")
    idle, looks = threading.Event(), threading.Semaphore(0)

    def is_idle() -> bool:
        looks.release()
        return idle.is_set()

    write = Scripted(Busy("full", 1.0), [item("Tom", "lives in", "Rome")], [])
    reader = BackgroundReader(knowledge, write, is_idle)
    assert looks.acquire(timeout=LIMIT) and write.questions == []
    idle.set()
    until(lambda: len(write.questions) == 2)
    knowledge.record_turn("ada", "c", "user", "And Eva.")
    reader.notify()
    until(lambda: not knowledge.conversations.unread(1))
    reader.close()
    assert [fact.object for fact in knowledge.facts.current("ada")] == ["Rome"]


def test_a_judge_turns_verdicts_into_scores() -> None:
    verdicts = [{"verdict": name} for name in ("contradicted", "open", "supported")]
    judge = Judge(Scripted(*verdicts, WorkError("no JSON")))
    scores = judge.score([("a", "b")] * 4)
    assert scores.tolist() == [1.0, 0.5, 0.0, 0.5]
    assert (scores >= judge.threshold).tolist() == [True, False, False, False]


def test_a_real_engine_writes_json_of_the_schema(tmp_path: Path) -> None:
    checkpoint(tmp_path / "base", None)
    with AsyncEngine([LoadedModel.load(tmp_path / "base", "base")]) as engine:
        schema = {"type": "object", "properties": {"verdict": {"enum": ["yes", "no"]}}, "required": ["verdict"],
                  "additionalProperties": False}  # fmt: skip
        assert json_writer(engine, "base")("Is it?", schema)["verdict"] in ("yes", "no")
        with pytest.raises(WorkError, match="no whole JSON in 3 tokens"):
            json_writer(engine, "base", 3)("Is it?", schema)
        scores = Judge(json_writer(engine, "base")).score([("A man sings.", "A man is silent.")])
        assert np.isin(scores, [0.0, 0.5, 1.0]).all()
        value = json_writer(engine, "base", 200)("List", {**SCHEMA, "maxItems": 0})
        assert value == []

"""After a kill at any moment the database is whole: every committed turn has its facts and its pair, each once."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from synthe_core.swarm.feedback.pairs import Pairs
from synthe_core.swarm.knowledge.knowledge import Knowledge
from synthe_core.swarm.store import Store
from tests.swarm.killing import Log, run_killed
from tests.swarm.knowledge.crash_writer import main

KILLS = [12, pytest.param(50, marks=pytest.mark.slow)]


def check(store: Store, user: str, committed: int) -> None:
    """One more turn than was printed may be committed."""
    knowledge = Knowledge(store)
    turns = knowledge.conversations.turns(user, "c")
    assert committed <= len(turns) <= committed + 1
    towns = knowledge.facts.history(user, "user", "lives in")
    assert [fact.object for fact in towns] == [f"town {number}" for number in range(len(turns))]
    assert [fact.superseded_by for fact in towns] == [*(fact.id for fact in towns[1:]), *([None] if towns else [])]
    likes = [fact.object for fact in knowledge.facts.current(user) if fact.predicate == "likes"]
    assert likes == [f"{user} thing {number}" for number in range(len(turns))]
    assert len(Pairs(store).entries(user=user)) == len(turns)
    if turns:
        (town,) = [fact for fact in knowledge.retrieve(user, "In which town do I live?", 50) if "town" in fact.object]
        assert town == towns[-1]


@pytest.mark.parametrize("kills", KILLS)
def test_kills_leave_whole_turns(tmp_path: Path, kills: int) -> None:
    path, chance = tmp_path / "swarm.db", random.Random(1)
    committed: dict[str, int] = {}
    for number in range(kills):
        user = f"user{number}"
        log = Log(tmp_path / f"{user}.log")
        assert not run_killed(partial(main, str(path), user, log), after=chance.uniform(0.05, 0.5))
        committed[user] = len(log.lines)
        store = Store(path)
        Knowledge(store)  # it may have been killed before there were tables
        assert not store.faults()
        with store.transaction() as connection:
            connection.execute(text("INSERT INTO facts_text(facts_text, rank) VALUES ('integrity-check', 1)"))
        check(store, user, committed[user])
        store.close()
    assert sum(committed.values()) > kills
    for user, number in committed.items():
        check(Store(path), user, number)

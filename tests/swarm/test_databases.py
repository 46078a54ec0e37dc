"""A swarm remembers in a file, or on a Postgres server that swarm.yaml names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synthe_core.errors import InputError, WorkError
from synthe_core.swarm.events import Answered, Routed
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.opening import open_store
from synthe_core.swarm.status import status
from synthe_core.swarm.team import SwarmRequest, open_swarm
from tests.swarm.test_team import OPTIONS, set_keys


def test_answers_ratings_and_facts_are_there_when_it_is_opened_again(folder: SwarmFolder, location: Path | str) -> None:
    is_file = isinstance(location, Path)
    if not is_file:
        set_keys(folder, database=json.dumps(location))
        folder.reload()
    said = [{"role": "user", "content": "I live in Par\0is. My cat is called Tom."}]
    with open_swarm(folder, **OPTIONS) as swarm:
        *_, end = swarm.answer(SwarmRequest(said, user="ann", conversation="c", max_tokens=2))
        assert isinstance(end, Answered)
        swarm.feedback.rate(end.answer_id, 1.0, "ann")
        swarm.feedback.correct(end.answer_id, "Hello.", "ann")
    assert folder.has_database and folder.database.exists() == is_file
    facts = status(folder)
    assert (facts["answers"], facts["rated"]) == (1, 1) and facts["bytes"] > 0
    with open_swarm(folder, **OPTIONS) as again:
        said = [{"role": "user", "content": "What is my cat called?"}]
        routed, *_ = again.answer(SwarmRequest(said, user="ann", conversation="c", max_tokens=2))
        assert isinstance(routed, Routed) and any("Tom" in each for each in routed.facts)
        assert again.recollection.knowledge.forget("ann")["pairs"] == 1
        assert again.record.answers.count() == 0


@pytest.mark.parametrize("url", ["mysql://a@b/c", "nonsense", "sqlite:///x.db"])
def test_what_is_no_url_of_postgres_is_refused(folder: SwarmFolder, url: str) -> None:
    set_keys(folder, database=json.dumps(url))
    folder.reload()
    with pytest.raises(InputError, match="database is"):
        open_store(folder)


def test_a_server_that_is_not_there_is_one_line_without_the_password(folder: SwarmFolder) -> None:
    pytest.importorskip("psycopg")
    set_keys(folder, database=json.dumps("postgresql://ann:secret@127.0.0.1:1/x"))
    folder.reload()
    with pytest.raises(WorkError) as error:
        open_store(folder)
    assert "secret" not in error.value.message and "\n" not in error.value.message

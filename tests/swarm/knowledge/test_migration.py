"""A database of version 1, whose index of words did not know whose its entries are, is taken up."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import inspect, text

from synthe_core.swarm.knowledge.fact import Claim, Source
from synthe_core.swarm.knowledge.facts import Facts
from synthe_core.swarm.knowledge.knowledge import Knowledge
from synthe_core.swarm.store import Store

VERSION_1 = """
DROP TRIGGER facts_text_insert; DROP TRIGGER facts_text_delete; DROP TABLE facts_text; DROP VIEW facts_words;
DROP INDEX facts_by_user;
CREATE VIRTUAL TABLE facts_text USING fts5(subject, predicate, object, content='facts', content_rowid='id',
 tokenize='porter unicode61 remove_diacritics 2');
CREATE TRIGGER facts_text_insert AFTER INSERT ON facts BEGIN
 INSERT INTO facts_text(rowid, subject, predicate, object) VALUES (new.id, new.subject, new.predicate, new.object)@ END;
CREATE TRIGGER facts_text_delete AFTER DELETE ON facts BEGIN
 INSERT INTO facts_text(facts_text, rowid, subject, predicate, object)
 VALUES ('delete', old.id, old.subject, old.predicate, old.object)@ END;
INSERT INTO facts_text(facts_text) VALUES ('rebuild');
UPDATE schemas SET version = 1 WHERE name = 'knowledge'
"""


def test_facts_of_version_1_are_there_and_searched_by_user(tmp_path: Path) -> None:
    path = tmp_path / "swarm.db"
    store = Store(path)
    facts = Facts(store)
    for user, place in (("ann", "Paris"), ("bob", "Rome")):
        facts.add(user, Claim("user", "lives in", place, functional=True), Source.USER, trusted=True)
    with store.transaction() as connection:
        for statement in VERSION_1.split(";"):
            connection.execute(text(statement.replace("@", ";")))
    store.close()
    again = Knowledge(Store(path))
    assert [fact.object for fact in again.retrieve("ann", "Where do I live?", 100)] == ["Paris"]
    again.record_turn("ann", "c", "user", "I live in Lyon.")
    assert [fact.object for fact in again.retrieve("ann", "Where do I live?", 100)] == ["Lyon"]
    with again.store.transaction() as connection:
        connection.execute(text("INSERT INTO facts_text(facts_text, rank) VALUES ('integrity-check', 1)"))
        assert {"facts_by_user"} <= {str(index["name"]) for index in inspect(connection).get_indexes("facts")}
    again.forget("bob")
    assert again.retrieve("bob", "Where do I live?", 100) == [] and not again.store.faults()

"""The index of facts' words in SQLite: FTS5, whose entries begin with whose fact it is.

A search reads one user's entries alone, so that it costs what that user's facts cost, whatever others have stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, inspect, text

from synthe_core.swarm.knowledge.hit import Hit

_PARTS = "subject, predicate, object"
_OWNER = "'u' || hex({row}.user)"
_NEW, _OLD = _OWNER.format(row="new"), _OWNER.format(row="old")
_NEW_PARTS, _OLD_PARTS = ("new.subject, new.predicate, new.object", "old.subject, old.predicate, old.object")
_CREATE = (
    f"CREATE VIEW facts_words AS SELECT id, {_OWNER.format(row='facts')} AS owner, {_PARTS} FROM facts",
    f"CREATE VIRTUAL TABLE facts_text USING fts5(owner, {_PARTS}, content='facts_words', content_rowid='id',"
    " tokenize='porter unicode61 remove_diacritics 2')",
    f"CREATE TRIGGER facts_text_insert AFTER INSERT ON facts BEGIN"
    f" INSERT INTO facts_text(rowid, owner, {_PARTS}) VALUES (new.id, {_NEW}, {_NEW_PARTS}); END",
    f"CREATE TRIGGER facts_text_delete AFTER DELETE ON facts BEGIN"
    f" INSERT INTO facts_text(facts_text, rowid, owner, {_PARTS})"
    f" VALUES ('delete', old.id, {_OLD}, {_OLD_PARTS}); END",
)
"""The text of a fact never changes after it was written, so there is no trigger of updates."""
_DROP = ("DROP TRIGGER facts_text_insert", "DROP TRIGGER facts_text_delete", "DROP TABLE facts_text")

_HITS = (
    "SELECT hits.word, facts.id, sum(hits.weight), length(facts.subject) + length(facts.predicate)"
    " + length(facts.object) FROM ({words}) AS hits JOIN facts ON facts.id = hits.id"
    " WHERE facts.user IN :users AND (:history OR facts.valid_until IS NULL) AND (:untrusted OR facts.trusted)"
    " GROUP BY hits.word, facts.id"
)
_WORD = "SELECT {number} AS word, rowid AS id, 1 AS weight FROM facts_text WHERE facts_text MATCH :{where}{number}"


def create(connection: Connection) -> None:
    """Makes the index of the facts that there are."""
    for statement in _CREATE:
        connection.execute(text(statement))
    rebuild(connection)


def is_current(connection: Connection) -> bool:
    """Whether the index knows whose its entries are."""
    return inspect(connection).has_table("facts_words")


def drop_earlier(connection: Connection) -> None:
    """Removes the index of version 1."""
    for statement in _DROP:
        connection.execute(text(statement))


def rebuild(connection: Connection) -> None:
    """Writes the index anew: the words of deleted facts stay in the old one until then."""
    connection.execute(text("INSERT INTO facts_text(facts_text) VALUES ('rebuild')"))


def find(
    connection: Connection, words: Sequence[str], users: Sequence[str], *, history: bool, untrusted: bool
) -> list[Hit]:
    """The facts of these users with one of `words`, which are letters and digits; once for each word of it."""
    owners = " OR ".join(f'"u{user.encode().hex().upper()}"' for user in users)
    places = {"anywhere": "subject predicate object", "subject": "subject"}
    queries = {
        f"{where}{number}": f'owner : ({owners}) AND {{{columns}}} : "{word}"'
        for number, word in enumerate(words)
        for where, columns in places.items()
    }
    parts = [_WORD.format(number=number, where=where) for number in range(len(words)) for where in places]
    statement = text(_HITS.format(words=" UNION ALL ".join(parts))).bindparams(bindparam("users", expanding=True))
    values = {**queries, "users": list(users), "history": history, "untrusted": untrusted}
    return [Hit(*map(int, row)) for row in connection.execute(statement, values)]

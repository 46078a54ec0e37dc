"""The index of facts' words in Postgres: their English stems (`tsvector`), with an inverted index (GIN)."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, text

from synthe_core.swarm.knowledge.hit import Hit

_CREATE = (
    "ALTER TABLE facts ADD COLUMN subject_words tsvector GENERATED ALWAYS AS (to_tsvector('english', subject)) STORED,"
    " ADD COLUMN words tsvector GENERATED ALWAYS AS"
    " (to_tsvector('english', subject || ' ' || predicate || ' ' || object)) STORED",
    "CREATE INDEX facts_words ON facts USING gin (words)",
)
_FIND = text(
    "SELECT queries.number, facts.id, 1 + (facts.subject_words @@ queries.query)::int,"
    " length(facts.subject) + length(facts.predicate) + length(facts.object)"
    " FROM (SELECT number - 1 AS number, plainto_tsquery('english', word) AS query"
    " FROM unnest(CAST(:words AS text[])) WITH ORDINALITY AS words(word, number)) AS queries"
    " JOIN facts ON facts.words @@ queries.query"
    ' WHERE facts."user" IN :users AND (:history OR facts.valid_until IS NULL) AND (:untrusted OR facts.trusted)'
).bindparams(bindparam("users", expanding=True))


def create(connection: Connection) -> None:
    """Makes the index of the facts that there are."""
    for statement in _CREATE:
        connection.execute(text(statement))


def find(
    connection: Connection, words: Sequence[str], users: Sequence[str], *, history: bool, untrusted: bool
) -> list[Hit]:
    """The facts of these users with one of `words`, which are letters and digits; once for each word of it."""
    values = {"words": list(words), "users": list(users), "history": history, "untrusted": untrusted}
    return [Hit(*map(int, row)) for row in connection.execute(_FIND, values)]

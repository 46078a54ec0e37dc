"""Every answer that a swarm has given: who asked what, who answered, how sure, and how it was rated."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import JSON, Column, Connection, Float, Index, Row, String, Table, func, select

from synthe_core.inference.request import NotFound
from synthe_core.swarm.confidence import Rating, Signals
from synthe_core.swarm.redaction import redact
from synthe_core.swarm.store import Schema, Store, metadata

MAX_REQUEST = 8000
"""Characters of a request that are kept."""

answers = Table(
    "answers",
    metadata,
    Column("id", String, primary_key=True),
    Column("user", String, nullable=False),
    Column("conversation", String, nullable=False),
    Column("request", String, nullable=False),
    Column("text", String, nullable=False),
    Column("specialists", JSON, nullable=False),
    Column("by", String, nullable=False),
    Column("domain", String, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("signals", JSON, nullable=False),
    Column("routing", JSON, nullable=False),
    Column("digests", JSON, nullable=False),
    Column("success", Float),
    Column("created", Float, nullable=False),
    Index("answers_by_user", "user", "created"),
)
_is_rated = answers.c.success.is_not(None)
_rated = Index("answers_rated", answers.c.created, sqlite_where=_is_rated, postgresql_where=_is_rated)

_COLUMNS = tuple(column.name for column in answers.columns)


def _create(connection: Connection) -> None:
    metadata.create_all(connection, [answers])


def _index_rated(connection: Connection) -> None:
    _rated.create(connection, checkfirst=True)


SCHEMA = Schema("answers", (_create, _index_rated))


@dataclass(frozen=True)
class Answer:
    """An answer.

    specialists: who was asked. by: whose text it is; "base" for a written one, several joined by + for a mixture.
    signals:     the `Signals` of every one of them, by name.
    routing:     the router's decision, as `Decision.json` has it.
    digests:     of the adapters that answered, by specialist.
    success:     0 to 1, once it is rated.
    """

    id: str
    user: str
    conversation: str
    request: str
    text: str
    specialists: tuple[str, ...]
    by: str
    domain: str
    confidence: float
    signals: Mapping[str, Any] = field(default_factory=dict)
    routing: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    success: float | None = None
    created: float = 0.0


def new_answer_id() -> str:
    """An id that nobody can guess: whoever has it may rate the answer."""
    return f"ans_{secrets.token_hex(12)}"


class Answers:
    """The answers in a swarm's database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.prepare(SCHEMA)

    def add(self, answer: Answer) -> None:
        """Records an answer, redacted; its time is now."""
        values = {
            name: getattr(answer, name)
            for name in _COLUMNS
            if name not in ("created", "request", "specialists", "text")
        }
        values |= {
            "specialists": list(answer.specialists),
            "request": redact(answer.request[:MAX_REQUEST]),
            "text": redact(answer.text),
        }
        with self._store.transaction() as connection:
            connection.execute(answers.insert().values(**values, created=self._store.now()))

    def get(self, answer_id: str, user: str | None = None) -> Answer:
        """The answer of that id; InputError if there is none, or if it is not this user's (None: anybody's)."""
        with self._store.read() as connection:
            row = connection.execute(select(answers).where(answers.c.id == answer_id)).first()
        if row is None or user not in (None, row.user):
            raise NotFound(f"no answer has the id '{answer_id[:60]}'", "replies and --trace give it")
        return _answer(row)

    def rate(self, answer_id: str, success: float) -> None:
        """Records how good the answer was, 0 to 1. A later rating replaces an earlier one."""
        with self._store.transaction() as connection:
            connection.execute(answers.update().where(answers.c.id == answer_id).values(success=success))

    def ratings(self, limit: int) -> dict[str, Rating]:
        """The newest rated answers by id, oldest first, as confidence learns from them."""
        columns = [answers.c[name] for name in ("id", "by", "domain", "success", "signals", "confidence")]
        query = select(*columns).where(_is_rated).order_by(answers.c.created.desc()).limit(limit)
        with self._store.read() as connection:
            rows = connection.execute(query).all()
        return {
            row.id: rating_of(row.by, row.domain, row.success, row.signals, row.confidence) for row in reversed(rows)
        }

    def count(self) -> int:
        """How many there are."""
        with self._store.read() as connection:
            return connection.scalar(select(func.count()).select_from(answers)) or 0

    def newest(self, limit: int, user: str | None = None) -> list[Answer]:
        """The newest answers, newest first."""
        query = select(answers).order_by(answers.c.created.desc()).limit(limit)
        if user is not None:
            query = query.where(answers.c.user == user)
        with self._store.read() as connection:
            return [_answer(row) for row in connection.execute(query)]


def rating_of(by: str, domain: str, success: float, signals: Mapping[str, Any], confidence: float) -> Rating:
    """A rated answer as confidence learns from it."""
    values = signals.get(by)  # an answer of another server has none
    return Rating(by, domain, success, Signals(**values) if values else None, confidence)


def _answer(row: Row[Any]) -> Answer:
    values = dict(row._mapping)
    return Answer(**{**values, "specialists": tuple(values["specialists"])})

"""Preference pairs: two answers to one prompt, of which one is better. None is learned before its review."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, func, select

from synthe_core.errors import InputError, unknown
from synthe_core.inference.request import NotFound
from synthe_core.swarm.feedback.tables import SCHEMA, pairs
from synthe_core.swarm.redaction import redact
from synthe_core.swarm.store import LimitReached, Store

MAX_TEXT = 32_000  # characters of a prompt or an answer
MAX_IDS = 10_000  # of one statement


class PairState(StrEnum):
    """NEW: nobody has looked at it. APPROVED: it may be learned. REJECTED: it may not. LEARNED: it was. REFUSED: what
    was learned of it was not promoted, or was rolled back; approved once more, it is learned again."""

    NEW = "new"
    APPROVED = "approved"
    REJECTED = "rejected"
    LEARNED = "learned"
    REFUSED = "refused"


class PairSource(StrEnum):
    """CORRECTION: a user wrote the better answer. TUTOR: a specialist on another server did. IMPORTED: a file brought
    it."""

    CORRECTION = "correction"
    TUTOR = "tutor"
    IMPORTED = "imported"


@dataclass(frozen=True)
class PairLimits:
    """How many pairs there may be, in all and of one user, whatever their state."""

    max_pairs: int = 100_000
    max_pairs_per_user: int = 10_000


@dataclass(frozen=True)
class Pair:
    """prompt, and the better and the worse answer to it.

    answer:         the recorded answer that it comes from, if one was.
    specialist:     whose answer was rejected.
    conflicts_with: an earlier pair of the same prompt that prefers what this one rejects: one of both is wrong.
    created, reviewed: seconds since 1970.
    """

    id: int
    user: str
    answer: str | None
    specialist: str
    source: PairSource
    prompt: str
    chosen: str
    rejected: str
    state: PairState
    conflicts_with: int | None
    reviewer: str | None
    created: float
    reviewed: float | None

    def row(self) -> dict[str, Any]:
        """The pair as training data of preference objectives."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}


class Pairs:
    """The pairs of a swarm. What is stored is redacted; the same pair is stored once."""

    def __init__(self, store: Store, limits: PairLimits | None = None) -> None:
        self.store, self.limits = store, limits or PairLimits()
        store.prepare(SCHEMA)

    def add(
        self,
        user: str,
        prompt: str,
        chosen: str,
        rejected: str,
        *,
        source: PairSource,
        specialist: str = "base",
        answer: str | None = None,
    ) -> Pair:
        """Writes a pair, or returns the one that is stored already.

        InputError for an empty or overlong text and for answers that do not differ, LimitReached beyond the limits.
        """
        texts = {"prompt": prompt, "chosen answer": chosen, "rejected answer": rejected}
        redacted = [_checked(name, text) for name, text in texts.items()]
        prompt, chosen, rejected = redacted
        _check_differ(chosen, rejected)
        with self.store.transaction() as connection:
            digest = _digest(prompt, chosen, rejected)
            if (row := connection.execute(pairs.select().where(pairs.c.digest == digest)).first()) is not None:
                return _pair(row)
            self._check_limits(connection, user)
            opposite = select(pairs.c.id).where(pairs.c.digest == _digest(prompt, rejected, chosen))
            values = {
                "user": user,
                "answer": answer,
                "specialist": specialist,
                "source": source,
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "state": PairState.NEW,
                "digest": digest,
                "conflicts_with": connection.scalar(opposite),
                "created": self.store.now(),
            }
            key = connection.execute(pairs.insert().values(values)).inserted_primary_key
            assert key is not None
            return self._get(connection, int(key[0]))

    def entries(
        self,
        state: PairState | None = None,
        *,
        user: str | None = None,
        specialist: str | None = None,
        limit: int | None = None,
        after: int = 0,
    ) -> list[Pair]:
        """The pairs with a greater id than `after`, oldest first: of a state, user or specialist if these are given."""
        query = pairs.select().where(pairs.c.id > after).order_by(pairs.c.id).limit(limit)
        for column, value in ((pairs.c.state, state), (pairs.c.user, user), (pairs.c.specialist, specialist)):
            query = query if value is None else query.where(column == value)
        with self.store.read() as connection:
            return [_pair(row) for row in connection.execute(query)]

    def get(self, id: int) -> Pair:
        """InputError if there is no such pair."""
        with self.store.read() as connection:
            return self._get(connection, id)

    def review(self, id: int, state: PairState, reviewer: str, *, chosen: str | None = None) -> Pair:
        """Approves or rejects a pair; `chosen` replaces the better answer.

        InputError if there is no such pair, if it was learned already, or if it contradicts an approved one.
        """
        if state not in (PairState.APPROVED, PairState.REJECTED):
            raise InputError(f"a review approves or rejects, and does not make a pair '{state}'")
        with self.store.transaction() as connection:
            pair = self._get(connection, id)
            if pair.state is PairState.LEARNED:
                hint = f"roll it back: synthe swarm rollback SWARM {pair.specialist}"
                raise InputError(f"pair {id} was learned already", hint)
            values: dict[str, Any] = {"state": state, "reviewer": reviewer, "reviewed": self.store.now()}
            if chosen is not None:
                values["chosen"] = _checked("chosen answer", chosen)
                _check_differ(values["chosen"], pair.rejected)
                values["digest"] = _digest(pair.prompt, values["chosen"], pair.rejected)
                same = select(pairs.c.id).where((pairs.c.digest == values["digest"]) & (pairs.c.id != id))
                if (other := connection.scalar(same)) is not None:
                    hint = f"review that one: synthe swarm pairs review SWARM --approve {other}"
                    raise InputError(f"pair {other} is the same", hint)
            if state is PairState.APPROVED:
                _check_opposite(connection, pair, values.get("chosen", pair.chosen))
            connection.execute(pairs.update().where(pairs.c.id == id).values(values))
            return self._get(connection, id)

    def mark_learned(self, ids: Iterable[int]) -> int:
        """Marks approved pairs as learned; returns how many that were."""
        return self._move(ids, PairState.APPROVED, PairState.LEARNED)

    def mark_refused(self, ids: Iterable[int]) -> int:
        """Marks approved or learned pairs as refused; returns how many that were."""
        return sum(self._move(ids, state, PairState.REFUSED) for state in (PairState.APPROVED, PairState.LEARNED))

    def _move(self, ids: Iterable[int], before: PairState, after: PairState) -> int:
        chosen, count = list(ids), 0
        with self.store.transaction() as connection:
            for first in range(0, len(chosen), MAX_IDS):
                is_meant = pairs.c.id.in_(chosen[first : first + MAX_IDS]) & (pairs.c.state == before)
                count += connection.execute(pairs.update().where(is_meant).values(state=after)).rowcount
        return count

    def ids_by_specialist(self, state: PairState) -> dict[str, list[int]]:
        """The pairs in a state by id, oldest first, of each specialist, or each group that wrote a text together."""
        query = select(pairs.c.specialist, pairs.c.id).where(pairs.c.state == state).order_by(pairs.c.id)
        ids: dict[str, list[int]] = {}
        with self.store.read() as connection:
            for name, id in connection.execute(query):
                ids.setdefault(str(name), []).append(int(id))
        return ids

    def counts(self) -> dict[str, int]:
        """How many pairs are in each state."""
        query = select(pairs.c.state, func.count()).group_by(pairs.c.state)
        with self.store.read() as connection:
            counted = {str(state): int(number) for state, number in connection.execute(query)}
        return {state.value: counted.get(state.value, 0) for state in PairState}

    def counts_by_specialist(self) -> dict[tuple[str, str], int]:
        """How many pairs are of each specialist in each state."""
        query = select(pairs.c.specialist, pairs.c.state, func.count()).group_by(pairs.c.specialist, pairs.c.state)
        with self.store.read() as connection:
            return {(str(name), str(state)): int(number) for name, state, number in connection.execute(query)}

    def _get(self, connection: Connection, id: int) -> Pair:
        row = connection.execute(pairs.select().where(pairs.c.id == id)).first()
        if row is None:
            raise NotFound(f"no such pair: {id}", "list them: synthe swarm pairs list SWARM")
        return _pair(row)

    def _check_limits(self, connection: Connection, user: str) -> None:
        every = select(func.count()).select_from(pairs)
        hint = "raise feedback.max_pairs in swarm.yaml"
        if (connection.scalar(every) or 0) >= self.limits.max_pairs:
            raise LimitReached(f"there are {self.limits.max_pairs} pairs already", hint)
        if (connection.scalar(every.where(pairs.c.user == user)) or 0) >= self.limits.max_pairs_per_user:
            raise LimitReached(f"there are {self.limits.max_pairs_per_user} pairs of one user already", hint)


def parse_state(text: str) -> PairState:
    """The state of that name; InputError for any other."""
    if text not in list(PairState):
        raise unknown("state of a pair", text, list(PairState))
    return PairState(text)


def _check_opposite(connection: Connection, pair: Pair, chosen: str) -> None:
    opposite = pairs.c.digest == _digest(pair.prompt, pair.rejected, chosen)
    usable = pairs.c.state.in_([PairState.APPROVED, PairState.LEARNED])
    other = connection.scalar(select(pairs.c.id).where(opposite & usable))
    if other is not None:
        hint = f"reject one of both: synthe swarm pairs review SWARM --reject {other}"
        raise InputError(f"pair {pair.id} prefers what pair {other} rejects, which is approved", hint)


def _checked(name: str, text: str) -> str:
    if not text.strip():
        raise InputError(f"the {name} is empty")
    if len(text) > MAX_TEXT:
        raise InputError(f"the {name} has {len(text)} characters; {MAX_TEXT} are allowed", "shorten it")
    return redact(text)


def _check_differ(chosen: str, rejected: str) -> None:
    if chosen.split() == rejected.split():
        raise InputError("the chosen answer and the rejected one are the same", "a pair needs two answers")


def _digest(prompt: str, chosen: str, rejected: str) -> str:
    """Of the words, whatever is between them."""
    parts = [" ".join(text.split()) for text in (prompt, chosen, rejected)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _pair(row: Row[Any]) -> Pair:
    values = dict(row._mapping)
    del values["digest"]
    return Pair(**{**values, "source": PairSource(values["source"]), "state": PairState(values["state"])})

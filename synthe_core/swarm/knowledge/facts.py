"""Facts in the database: said again, superseded, corrected, trusted and ended, each in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, or_, select

from synthe_core.errors import InputError
from synthe_core.inference.request import NotFound
from synthe_core.swarm.knowledge.fact import Claim, Fact, Source, key
from synthe_core.swarm.knowledge.tables import SCHEMA, current, facts
from synthe_core.swarm.store import LimitReached, Store

MAX_PART = 1000  # characters of a subject, predicate or object
MAX_FACTS = 100_000  # of one user, history included

Outcome = Literal["new", "same", "superseding", "past"]


class Added(NamedTuple):
    """What became of a claim.

    outcome: `new`; `same`: it was known, and was seen again; `superseding`: it took the place of `superseded`; `past`:
    what contradicts it was said of a later time, so it went into the history.
    """

    fact: Fact
    outcome: Outcome
    superseded: tuple[Fact, ...] = ()


class Facts:
    """The facts of all users. What a method gets and returns is one user's; everybody's facts have the user ""."""

    def __init__(self, store: Store, max_facts: int = MAX_FACTS) -> None:
        self.store, self.max_facts = store, max_facts
        store.prepare(SCHEMA)

    def add(
        self,
        user: str,
        claim: Claim,
        source: Source,
        *,
        trusted: bool,
        confidence: float = 1.0,
        message: int | None = None,
        at: float | None = None,
        instead_of: int | None = None,
    ) -> Added:
        """Writes a claim that holds since `at`, now by default.

        The same claim again is no second fact. One that contradicts current facts (the other object of a functional
        relation, or its negation) takes their place; they stay in the history. A claim that is not trusted never takes
        the place of a trusted fact: both stay, and only the trusted one is used.

        instead_of: a fact that it corrects, whatever the relation. InputError for an empty or overlong claim, and
        where the user has no such fact; LimitReached beyond the limit of facts.
        """
        _check(claim)
        at = self.store.now() if at is None else at
        with self.store.transaction() as connection:
            named = [] if instead_of is None else [self._get(connection, user, instead_of)]
            corrected = [fact for fact in named if fact.is_current and (trusted or not fact.trusted)]
            rivals = {fact.id: fact for fact in _rivals(connection, user, claim, trusted)}
            # what is not trusted cannot make a trusted claim a thing of the past
            later = [fact for fact in rivals.values() if fact.valid_from > at and (fact.trusted or not trusted)]
            same = _same(connection, user, claim)
            if same is not None and (same.trusted or not trusted or not later):
                # the corrected fact may say the same in other letters: then there is nothing to end
                ended = tuple(fact for fact in corrected if fact.id != same.id)
                self._see(connection, same, confidence, at, trusted)
                _end(connection, ended, same.id, at)
                return Added(self._get(connection, user, same.id), "same", ended)
            self._check_limit(connection, user)
            replaced = {fact.id: fact for fact in rivals.values() if fact.valid_from <= at}
            earlier = list((replaced | {fact.id: fact for fact in corrected}).values())
            later = [fact for fact in later if fact not in corrected]
            _end(connection, earlier, None, at)
            new = Fact(
                **vars(_bare(claim)),
                user=user,
                confidence=confidence,
                source=source,
                trusted=trusted,
                message=message,
                valid_from=at,
                last_seen=at,
            )
            if later:
                successor = min(later, key=lambda fact: fact.valid_from)
                new = replace(new, valid_until=successor.valid_from, superseded_by=successor.id)
            new = _insert(connection, new)
            _end(connection, earlier, new.id, at)
            outcome: Outcome = "past" if later else "superseding" if earlier else "new"
            return Added(new, outcome, tuple(earlier))

    def trust(self, user: str, id: int) -> Added:
        """Makes a fact trusted. Trusted facts that it contradicts are superseded by it. InputError: no such fact."""
        now = self.store.now()
        with self.store.transaction() as connection:
            fact = self._get(connection, user, id)
            if not fact.is_current:
                raise InputError(f"fact {id} holds no longer", "add it again, or trust the fact that took its place")
            ended = () if fact.trusted else self._make_trusted(connection, fact, now)
            return Added(self._get(connection, user, id), "superseding" if ended else "same", ended)

    def contradicted(self, user: str, claim: Claim) -> list[Fact]:
        """The trusted current facts of the user that cannot hold together with a claim."""
        with self.store.read() as connection:
            return [fact for fact in _rivals(connection, user, claim, trusted=True) if fact.trusted]

    def end(self, user: str, id: int) -> Fact:
        """Marks a fact as holding no longer; it stays in the history. InputError if the user has no such fact."""
        with self.store.transaction() as connection:
            fact = self._get(connection, user, id)
            if fact.is_current:
                connection.execute(facts.update().where(facts.c.id == id).values(valid_until=self.store.now()))
            return self._get(connection, user, id)

    def get(self, user: str, id: int) -> Fact:
        """InputError if the user has no such fact."""
        with self.store.read() as connection:
            return self._get(connection, user, id)

    def current(self, user: str, *, trusted: bool | None = None, shared: bool = False) -> list[Fact]:
        """The facts that hold, oldest first. trusted: only those that are, or are not. shared: everybody's too."""
        users = (user, "") if shared else (user,)
        condition = current & facts.c.user.in_(users)
        return self._select(condition if trusted is None else condition & (facts.c.trusted == trusted))

    def history(self, user: str, subject: str | None = None, predicate: str | None = None) -> list[Fact]:
        """Every fact that held or holds, oldest first, of a subject and relation if they are given."""
        condition: ColumnElement[bool] = facts.c.user == user
        if subject is not None:
            condition &= facts.c.subject_key == key(subject)
        if predicate is not None:
            condition &= facts.c.predicate_key == key(predicate)
        return self._select(condition)

    def newest(self, user: str, *, history: bool = False, limit: int) -> list[Fact]:
        """The facts of a user and of everybody that were seen last, the newest first. history: those too that hold no
        longer."""
        own = facts.c.user.in_((user, ""))
        query = facts.select().where(own if history else own & current)
        query = query.order_by(facts.c.last_seen.desc(), facts.c.id.desc()).limit(limit)
        with self.store.read() as connection:
            return [fact_of(row) for row in connection.execute(query)]

    def count(self, user: str) -> int:
        """How many facts a user has, history included."""
        with self.store.read() as connection:
            return _count(connection, user)

    def _select(self, condition: ColumnElement[bool]) -> list[Fact]:
        with self.store.read() as connection:
            query = facts.select().where(condition).order_by(facts.c.valid_from, facts.c.id)
            return [fact_of(row) for row in connection.execute(query)]

    def _get(self, connection: Connection, user: str, id: int) -> Fact:
        row = connection.execute(facts.select().where((facts.c.id == id) & (facts.c.user == user))).first()
        if row is None:
            raise NotFound(f"no such fact: {id}", "list them: synthe swarm knowledge search SWARM")
        return fact_of(row)

    def _see(self, connection: Connection, fact: Fact, confidence: float, at: float, trusted: bool) -> None:
        """Notes that a fact was said again, perhaps by somebody who is trusted."""
        seen = {
            "last_seen": max(fact.last_seen, at),
            "times_seen": fact.times_seen + 1,
            "confidence": max(fact.confidence, confidence),
        }
        connection.execute(facts.update().where(facts.c.id == fact.id).values(seen))
        if trusted and not fact.trusted:
            self._make_trusted(connection, fact, at)

    def _make_trusted(self, connection: Connection, fact: Fact, at: float) -> tuple[Fact, ...]:
        """Ends what it contradicts, but for what is said of a later time by somebody who is not trusted."""
        rivals = tuple(
            each
            for each in _rivals(connection, fact.user, fact, trusted=True)
            if each.id != fact.id and (each.trusted or each.valid_from <= at)
        )
        _end(connection, rivals, fact.id, at)
        connection.execute(facts.update().where(facts.c.id == fact.id).values(trusted=True))
        return rivals

    def _check_limit(self, connection: Connection, user: str) -> None:
        if _count(connection, user) >= self.max_facts:
            hint = "delete some: synthe swarm knowledge forget SWARM"
            raise LimitReached(f"there are {self.max_facts} facts of one user already", hint)


def fact_of(row: Row[Any]) -> Fact:
    """A row of the table as a fact."""
    values = dict(row._mapping)
    for name in ("subject_key", "predicate_key", "object_key"):
        del values[name]
    return Fact(**{**values, "source": Source(values["source"])})


def _bare(claim: Claim) -> Claim:
    """What a claim says, without what a `Fact` knows beside it."""
    return Claim(claim.subject, claim.predicate, claim.object, claim.negated, claim.functional)


def _check(claim: Claim) -> None:
    for name, part in (("subject", claim.subject), ("predicate", claim.predicate), ("object", claim.object)):
        if not key(part):
            raise InputError(f"the {name} of a fact is empty", "a fact is: SUBJECT PREDICATE OBJECT")
        if len(part) > MAX_PART:
            raise InputError(f"the {name} of a fact has {len(part)} characters; {MAX_PART} are allowed", "shorten it")


def _count(connection: Connection, user: str) -> int:
    return int(connection.scalar(select(func.count()).select_from(facts).where(facts.c.user == user)) or 0)


def _of_relation(user: str, claim: Claim) -> ColumnElement[bool]:
    return (
        current
        & (facts.c.user == user)
        & (facts.c.subject_key == key(claim.subject))
        & (facts.c.predicate_key == key(claim.predicate))
    )


def _same(connection: Connection, user: str, claim: Claim) -> Fact | None:
    """The current fact that says the same; the trusted one where there are two."""
    is_same = (facts.c.object_key == key(claim.object)) & (facts.c.negated == claim.negated)
    query = facts.select().where(_of_relation(user, claim) & is_same).order_by(facts.c.trusted.desc())
    row = connection.execute(query).first()
    return None if row is None else fact_of(row)


def _rivals(connection: Connection, user: str, claim: Claim, trusted: bool) -> list[Fact]:
    """The current facts that cannot hold together with a claim, and whose place it may take."""
    is_rival = and_(facts.c.object_key == key(claim.object), facts.c.negated != claim.negated)
    if claim.functional and not claim.negated:
        is_rival = or_(is_rival, and_(facts.c.object_key != key(claim.object), ~facts.c.negated))
    query = facts.select().where(_of_relation(user, claim) & is_rival)
    if not trusted:
        query = query.where(~facts.c.trusted)
    return [fact_of(row) for row in connection.execute(query)]


def _end(connection: Connection, ended: Iterable[Fact], successor: int | None, at: float) -> None:
    if ids := [fact.id for fact in ended]:
        until = case((facts.c.valid_from > at, facts.c.valid_from), else_=at)
        connection.execute(facts.update().where(facts.c.id.in_(ids)).values(valid_until=until, superseded_by=successor))


def _insert(connection: Connection, fact: Fact) -> Fact:
    values = {name: value for name, value in vars(fact).items() if name != "id"}
    keys = {f"{name}_key": key(values[name]) for name in ("subject", "predicate", "object")}
    result = connection.execute(facts.insert().values(**values, **keys))
    assert result.inserted_primary_key is not None
    return replace(fact, id=int(result.inserted_primary_key[0]))

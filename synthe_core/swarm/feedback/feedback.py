"""Ratings and corrections of answers. A correction is a preference pair too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import select

from synthe_core.errors import InputError, unknown
from synthe_core.swarm.answers import Answer, Answers
from synthe_core.swarm.feedback.pairs import Pair, PairLimits, Pairs, PairSource, PairState
from synthe_core.swarm.feedback.tables import SCHEMA, ratings
from synthe_core.swarm.store import LimitReached, Store, insert

EXPLICIT = "rating"
IMPLICIT = {"copied": 0.8, "continued": 0.6, "regenerated": 0.3, "stopped": 0.3}
"""What a user did with an answer, and how good it is then taken to be. No rating by a user is replaced by one."""


@dataclass(frozen=True)
class Rating:
    """score: how good the user finds the answer, 0 to 1. signal: `rating`, or what the user did with it."""

    answer: str
    user: str
    score: float
    signal: str
    time: float


class Feedback:
    """What users say of answers.

    implicit: whether what a user does with an answer counts too. By default it does not.
    teach:    learns the score of an answer by its id, and `right` where somebody says which specialist should have
              answered, within the transaction that records it; `Swarm.rate` teaches router, pathways and confidence.
              By default the score is written to the answer.
    """

    def __init__(
        self,
        store: Store,
        *,
        limits: PairLimits | None = None,
        implicit: bool = False,
        teach: Callable[..., object] | None = None,
    ) -> None:
        self.store, self.implicit = store, implicit
        self.answers, self._pairs = Answers(store), Pairs(store, limits)
        self._teach = teach or self.answers.rate
        store.prepare(SCHEMA)

    def rate(self, answer_id: str, score: float, user: str, right: str | None = None) -> Rating:
        """Records how good an answer is: 1 for a thumb up, 0 for a thumb down. A later rating replaces an earlier one.

        InputError for a score outside 0 to 1, and if the user got no such answer.
        """
        if not 0 <= score <= 1:  # NaN too
            raise InputError(f"a score of {score} is not between 0 and 1", "1 is a thumb up, 0 a thumb down")
        with self.store.transaction():
            answer = self.answers.get(answer_id, user)
            return self._write(answer, score, EXPLICIT, right)

    def observe(self, answer_id: str, signal: str, user: str) -> Rating | None:
        """Records what a user did with an answer, if `implicit` is on; None if it is off, or the user rated it.

        InputError for an unknown signal, and if the user got no such answer.
        """
        if signal not in IMPLICIT:
            raise unknown("signal", signal, IMPLICIT)
        if not self.implicit:
            return None
        with self.store.transaction():
            answer, earlier = self.answers.get(answer_id, user), self.rating(answer_id, user)
            if earlier is not None and earlier.signal == EXPLICIT:
                return None
            return self._write(answer, IMPLICIT[signal], signal)

    def correct(self, answer_id: str, text: str, user: str, right: str | None = None) -> Pair:
        """Records a better answer: a pair to review, and a rating of 0.

        InputError for an empty text or that of the answer, and if the user got no such answer.
        """
        with self.store.transaction():
            answer = self.answers.get(answer_id, user)
            pair = self._pairs.add(
                user,
                answer.request,
                text,
                answer.text,
                source=PairSource.CORRECTION,
                specialist=answer.by,
                answer=answer.id,
            )
            self._write(answer, 0.0, EXPLICIT, right)
            return pair

    def teach_pair(self, user: str, answer_id: str, request: str, specialist: str, chosen: str, rejected: str) -> None:
        """Keeps a tutor's answer as the better one, for a review. Beyond the limits of pairs nothing is kept."""
        with suppress(LimitReached, InputError):
            self._pairs.add(
                user,
                request,
                chosen,
                rejected,
                source=PairSource.TUTOR,
                specialist=specialist,
                answer=answer_id,
            )

    def pairs(
        self,
        state: PairState | None = None,
        *,
        user: str | None = None,
        specialist: str | None = None,
        limit: int | None = None,
        after: int = 0,
    ) -> list[Pair]:
        """The preference pairs, oldest first; see `Pairs.entries`."""
        return self._pairs.entries(state, user=user, specialist=specialist, limit=limit, after=after)

    def review(self, id: int, state: PairState, reviewer: str, *, chosen: str | None = None) -> Pair:
        """Approves or rejects a pair; see `Pairs.review`."""
        return self._pairs.review(id, state, reviewer, chosen=chosen)

    def rating(self, answer_id: str, user: str) -> Rating | None:
        """How a user rated an answer; None if they did not."""
        query = select(ratings).where((ratings.c.answer == answer_id) & (ratings.c.user == user))
        with self.store.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else Rating(row.answer, row.user, row.score, row.signal, row.time)

    def _write(self, answer: Answer, score: float, signal: str, right: str | None = None) -> Rating:
        rating = Rating(answer.id, answer.user, score, signal, self.store.now())
        values = vars(rating)
        with self.store.transaction() as connection:
            replaced = {name: values[name] for name in ("score", "signal", "time")}
            written = insert(connection, ratings).values(values)
            connection.execute(written.on_conflict_do_update(index_elements=["answer", "user"], set_=replaced))
            self._teach(answer.id, score, **({} if right is None else {"right": right}))
        return rating

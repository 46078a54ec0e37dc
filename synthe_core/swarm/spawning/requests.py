"""Routed requests with what came of them, as spawning reads them from a swarm's database."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sqlalchemy import select

from synthe_core.swarm.answers import SCHEMA as ANSWERS
from synthe_core.swarm.answers import answers
from synthe_core.swarm.router.observations import SCHEMA as OBSERVATIONS
from synthe_core.swarm.router.observations import observations
from synthe_core.swarm.store import Store

MAX_REQUESTS = 4000
"""The newest requests that are looked at."""


@dataclass(frozen=True)
class RoutedRequest:
    """is_weak: it was rated as a failure, or nobody rated it and it was answered with little confidence, or by the
    fallback. embedding: float32 [D], as the base gives it."""

    answer: str
    user: str
    text: str
    embedding: np.ndarray
    is_weak: bool
    created: float


def newest_base(store: Store) -> str | None:
    """The digest of the base that the newest request was embedded by; None before the first."""
    store.prepare(OBSERVATIONS)
    query = select(observations.c.base).order_by(observations.c.id.desc()).limit(1)
    with store.read() as connection:
        row = connection.execute(query).first()
    return None if row is None else str(row[0])


def routed_requests(store: Store, base: str, max_confidence: float) -> list[RoutedRequest]:
    """The newest requests that were embedded by that base, oldest first."""
    store.prepare(OBSERVATIONS)
    store.prepare(ANSWERS)
    rows = (
        select(observations, answers.c.success, answers.c.confidence, answers.c.routing)
        .join(answers, answers.c.id == observations.c.answer)
        .where(observations.c.base == base)
        .order_by(observations.c.id.desc())
        .limit(MAX_REQUESTS)
    )
    with store.read() as connection:
        routed = connection.execute(rows).all()
    return [
        RoutedRequest(
            row.answer,
            row.user,
            row.text,
            np.frombuffer(row.embedding, np.float16).astype(np.float32),
            _is_weak(row.success, row.confidence, bool(row.routing.get("fallback")), max_confidence),
            row.created,
        )
        for row in reversed(routed)
    ]


def _is_weak(success: float | None, confidence: float, fallback: bool, max_confidence: float) -> bool:
    return success < 0.5 if success is not None else fallback or confidence < max_confidence

"""Finding the facts that belong to a text: by their words (BM25), and by their meaning (embeddings)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from synthe_core.retrieval.fusion import reciprocal_rank_fusion
from synthe_core.retrieval.words import content_words
from synthe_core.swarm.knowledge import word_index
from synthe_core.swarm.knowledge.embedder import Embedder, similarities
from synthe_core.swarm.knowledge.fact import Fact
from synthe_core.swarm.knowledge.facts import Facts, fact_of
from synthe_core.swarm.knowledge.hit import Hit
from synthe_core.swarm.knowledge.tables import facts

LIMIT = 50  # facts of one search
MAX_COMPARED = 5000  # the newest facts whose vectors are compared
K1, B = 1.2, 0.75
MIN_SIMILARITY = 0.1
"""The least cosine of a fact that is returned: docs/results/swarm-knowledge.md has the measurement."""


def search(
    all_facts: Facts,
    user: str,
    request: str,
    *,
    embed: Embedder | None = None,
    untrusted: bool = False,
    history: bool = False,
    limit: int = LIMIT,
) -> list[Fact]:
    """The facts of a user and of everybody that belong to `request`, the best first.

    untrusted: those too that are not trusted. history: those too that hold no longer.
    """
    orders = [by_words(all_facts, user, request, untrusted=untrusted, history=history, limit=limit)]
    if embed is not None:
        orders.append(by_meaning(all_facts, user, request, embed, untrusted=untrusted)[:limit])
    known = {fact.id: fact for order in orders for fact in order}
    scores = reciprocal_rank_fusion((1.0, [fact.id for fact in order]) for order in orders)
    return [known[id] for id in scores][:limit]


def by_words(
    all_facts: Facts, user: str, request: str, *, untrusted: bool = False, history: bool = False, limit: int = LIMIT
) -> list[Fact]:
    """The facts that share a word with `request`, in the order of BM25. Words are compared by their stems."""
    words = content_words(request)
    if not words:
        return []
    with all_facts.store.read() as connection:
        hits = word_index.find(connection, words, (user, ""), history=history, untrusted=untrusted)
        ids = best_matches(hits)[:limit]
        rows = {row.id: row for row in connection.execute(facts.select().where(facts.c.id.in_(ids)))}
    return [fact_of(rows[id]) for id in ids]


def best_matches(hits: Sequence[Hit]) -> list[int]:
    """The facts by id, in the order of BM25 (Robertson & Zaragoza 2009).

    How rare a word is, is a matter of the user's own facts: all that have it are among the hits.
    """
    holders = Counter(hit.word for hit in hits)
    sizes = {hit.fact: hit.size for hit in hits}
    mean = sum(sizes.values()) / max(1, len(sizes))
    scores = dict.fromkeys(sizes, 0.0)
    for hit in hits:
        rarity = math.log(1 + (len(sizes) - holders[hit.word] + 0.5) / (holders[hit.word] + 0.5))
        length = 1 - B + B * hit.size / mean
        scores[hit.fact] += rarity * hit.weight * (K1 + 1) / (hit.weight + K1 * length)
    return sorted(scores, key=lambda id: (-scores[id], id))


def by_meaning(all_facts: Facts, user: str, request: str, embed: Embedder, *, untrusted: bool = False) -> list[Fact]:
    """The current facts whose embedding is like that of `request`, the most similar first."""
    trusted = None if untrusted else True
    candidates = all_facts.current(user, trusted=trusted, shared=True)[-MAX_COMPARED:]
    cosines = similarities(all_facts.store, embed, candidates, request)
    ranked = sorted(zip(cosines.tolist(), candidates, strict=True), key=lambda pair: -pair[0])
    return [fact for cosine, fact in ranked if cosine >= MIN_SIMILARITY]

"""Searching an index: by words (BM25), by meaning (the cosine of embeddings), or by both, fused."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np

from synthe_core.errors import InputError
from synthe_core.retrieval.by import By
from synthe_core.retrieval.document_index import DocumentIndex, StoredPassage
from synthe_core.retrieval.embedder import Embedder
from synthe_core.retrieval.fusion import reciprocal_rank_fusion

CANDIDATES = 50
"""Passages of each ranking that are fused."""
MIN_VECTORS = 8
"""Of fewer passages the deviation of a dimension says nothing, and only the mean is subtracted."""


class SearchResult(NamedTuple):
    """A passage and its score: of reciprocal rank fusion, higher is better."""

    passage: StoredPassage
    score: float


class Searcher:
    """Searches one index; the vectors stay in memory between searches. For any thread."""

    def __init__(self, index: DocumentIndex, embedder: Embedder | None = None) -> None:
        self.index, self.embedder = index, embedder
        self._lock = threading.Lock()
        self._stored: _Vectors | None = None

    def search(self, query: str, limit: int = 5, by: By | None = None) -> list[SearchResult]:
        """The passages that belong to `query`, the best first. by: None for both where there is an embedder.

        InputError for a search by meaning without an embedder.
        """
        by = by or (By.words if self.embedder is None else By.both)
        if by is not By.words and self.embedder is None:
            raise InputError(
                f"{self.index.path} has no embeddings", "index it with --model MODEL, or search it --by words"
            )
        rankings: list[tuple[float, list[int]]] = []
        if by is not By.meaning:
            rankings.append((1.0, self.index.by_words(query, max(limit, CANDIDATES))))
        if by is not By.words and self.embedder is not None:
            rankings.append((self.embedder.weight, self._by_meaning(self.embedder, query, max(limit, CANDIDATES))))
        scores = reciprocal_rank_fusion(rankings)
        passages = self.index.passages(list(scores)[:limit])
        return [SearchResult(each, scores[each.id]) for each in passages]

    def _by_meaning(self, embedder: Embedder, query: str, limit: int) -> list[int]:
        vectors = self._vectors(embedder)
        if not len(vectors.ids) or not query.strip():
            return []
        cosines = vectors.unit @ vectors.normalized(embedder.embed([query])[0])
        best = np.argsort(-cosines, kind="stable")[:limit]
        return [int(id) for id in vectors.ids[best]]

    def _vectors(self, embedder: Embedder) -> _Vectors:
        with self._lock:
            version = self.index.version()
            if self._stored is None or self._stored.version != version:
                self._stored = _Vectors.of(version, *self.index.vectors(embedder.name), embedder.centered)
            return self._stored


class _Vectors(NamedTuple):
    """unit: float32 [N, D], of length 1, standardised by mean and deviation where the embedder says so."""

    version: int
    ids: np.ndarray
    unit: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, version: int, ids: np.ndarray, rows: np.ndarray, centered: bool) -> _Vectors:
        size = rows.shape[1]
        mean = rows.mean(0) if centered and len(rows) > 1 else np.zeros(size, np.float32)
        deviation = rows.std(0) + 1e-6 if centered and len(rows) >= MIN_VECTORS else np.ones(size, np.float32)
        return cls(version, ids, _unit((rows - mean) / deviation), mean, deviation)

    def normalized(self, row: np.ndarray) -> np.ndarray:
        return _unit((row - self.mean) / self.deviation)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)

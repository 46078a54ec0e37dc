"""Search by words, by meaning, and by both; passages in a prompt, and citations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synthe_core.errors import InputError
from synthe_core.events import drain
from synthe_core.retrieval.by import By
from synthe_core.retrieval.document_index import DocumentIndex
from synthe_core.retrieval.embedder import Embedder
from synthe_core.retrieval.fusion import CONSTANT, reciprocal_rank_fusion
from synthe_core.retrieval.indexing import index_documents
from synthe_core.retrieval.prompt import HEADER, block, cited, fitting
from synthe_core.retrieval.search import Searcher


@pytest.fixture
def searcher(tmp_path: Path, handbook: Path, embedder: Embedder) -> Searcher:
    index = DocumentIndex(tmp_path / "docs.db", create=True)
    drain(index_documents(index, [handbook], embedder))
    return Searcher(index, embedder)


def documents(searcher: Searcher, query: str, by: By | None = None, limit: int = 5) -> list[str]:
    return [each.passage.heading for each in searcher.search(query, limit, by)]


def test_words_and_meaning_find_different_passages(searcher: Searcher) -> None:
    assert documents(searcher, "railway", By.words) == []
    assert documents(searcher, "railway", By.meaning)[0] == "travel"
    assert documents(searcher, "taxis", By.words) == ["travel"]
    assert documents(searcher, "vacation and a receipt", limit=2) == ["travel", "Leave"]
    assert documents(searcher, "a doctor's note", By.words) == ["Leave > Illness"]


def test_new_vectors_are_seen(searcher: Searcher, handbook: Path, embedder: Embedder) -> None:
    assert documents(searcher, "reimbursed", By.meaning, 1) == ["Money"]
    (handbook / "more.md").write_text("# More\n\nReimbursed is what you spend on a sick railway.\n")
    drain(index_documents(searcher.index, [handbook], embedder))
    assert documents(searcher, "reimbursed sick railway", By.meaning, 1) == ["More"]


def test_vectors_of_a_language_model_are_standardised(tmp_path: Path, handbook: Path, embedder: Embedder) -> None:
    def shifted(texts: list[str]) -> np.ndarray:
        return np.concatenate([embedder.embed(texts), np.full((len(texts), 1), 50.0)], 1)

    other = Embedder("shifted", shifted, centered=True)
    index = DocumentIndex(tmp_path / "docs.db", create=True)
    drain(index_documents(index, [handbook], other))
    assert documents(Searcher(index, other), "railway", By.meaning, 1) == ["travel"]


def test_meaning_needs_embeddings(searcher: Searcher) -> None:
    with pytest.raises(InputError, match="no embeddings"):
        Searcher(searcher.index).search("x", 5, By.meaning)
    assert [each.passage.heading for each in Searcher(searcher.index).search("taxis")] == ["travel"]
    assert searcher.search("", 5, By.meaning) == []


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    scores = reciprocal_rank_fusion([(1, [3, 1]), (1, [1, 2])])
    assert scores == {1: 1 / (CONSTANT + 2) + 1 / (CONSTANT + 1), 3: 1 / (CONSTANT + 1), 2: 1 / (CONSTANT + 2)}
    assert list(scores) == [1, 3, 2]
    assert list(reciprocal_rank_fusion([(1, [9]), (1, [4])])) == [4, 9]
    assert list(reciprocal_rank_fusion([(1, [5, 4]), (0.1, [6])])) == [5, 4, 6]


def test_a_prompt_has_what_fits_and_answers_cite_it(searcher: Searcher) -> None:
    hits = searcher.search("days of holiday, refunds within days, taxis", 3)
    text = block(hits)
    assert text.startswith(HEADER) and f"[1] {hits[0].passage.heading}\n{hits[0].passage.text}" in text
    assert block([]) == "" and fitting(hits, 10_000, len) == hits and fitting(hits, 10, len) == []
    assert fitting(hits, len(block(hits[1:2])), len)  # a long one is passed over
    assert [number for number, _ in cited("As [2] and [1] say, [7] and [2].", hits)] == [2, 1]

"""An index follows its files: what is new, changed, vanished or damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from synthe_core.errors import InputError
from synthe_core.events import Notice, Progress, drain
from synthe_core.retrieval.document_index import DocumentIndex
from synthe_core.retrieval.embedder import Embedder
from synthe_core.retrieval.indexing import index_documents, matching
from synthe_core.retrieval.prompt import place_of
from tests.data.document_text.files import pdf
from tests.retrieval.conftest import embed


@pytest.fixture
def index(tmp_path: Path) -> DocumentIndex:
    return DocumentIndex(tmp_path / "docs.db", create=True)


def run(index: DocumentIndex, *paths: Path, embedder: Embedder | None = None, words: int = 200) -> str:
    values = drain(index_documents(index, paths, embedder, words=words)).values
    return "".join(f"{name[0]}{values[name]}" for name in ("added", "changed", "removed", "unchanged", "failed"))


def test_a_folder_is_followed(index: DocumentIndex, handbook: Path) -> None:
    assert run(index, handbook) == "a3c0r0u0f0"
    assert [each.name for each in index.documents()] == [
        "handbook/deep/money.html", "handbook/leave.md", "handbook/travel.txt"
    ]  # fmt: skip
    assert run(index, handbook) == "a0c0r0u3f0"
    (handbook / "leave.md").write_text("# Leave\n\nEverybody has 31 days.\n")
    (handbook / "travel.txt").unlink()
    (handbook / "new.md").write_text("New.\n")
    assert run(index, handbook) == "a1c1r1u1f0"
    assert index.by_words("holiday", 9) == [] and index.by_words("taxi", 9) == []
    assert len(index.by_words("31", 9)) == 1


def test_a_file_with_another_time_and_the_same_text_is_unchanged(index: DocumentIndex, handbook: Path) -> None:
    run(index, handbook)
    before = index.by_words("holiday", 9)
    os.utime(handbook / "leave.md", ns=(5, 5))
    assert run(index, handbook) == "a0c0r0u3f0" and index.by_words("holiday", 9) == before
    assert any(each.modified == 5 for each in index.documents())


def test_another_size_of_passages_reads_all_again(index: DocumentIndex, handbook: Path) -> None:
    (handbook / "long.txt").write_text("One two three four five. " * 40)
    run(index, handbook)
    few = sum(index.counts().values())
    assert run(index, handbook, words=40) == "a0c4r0u0f0"
    assert sum(index.counts().values()) > few
    assert run(index, handbook, words=40) == "a0c0r0u4f0"


def test_a_damaged_file_is_reported_and_its_earlier_text_stays(index: DocumentIndex, handbook: Path) -> None:
    run(index, handbook)
    (handbook / "travel.txt").write_bytes(b"\xff\xfe\x00")
    events = list(index_documents(index, [handbook]))
    notices = [each.message for each in events if isinstance(each, Notice)]
    assert len(notices) == 1 and "travel.txt" in notices[0]
    assert len(index.by_words("taxis", 9)) == 1
    steps = [each for each in events if isinstance(each, Progress)]
    assert (steps[0].done, steps[-1].done, steps[-1].total) == (0, 3, 3)


def test_an_interrupted_run_resumes(index: DocumentIndex, handbook: Path, embedder: Embedder) -> None:
    calls = []

    def interrupted(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(index, handbook, embedder=Embedder(embedder.name, interrupted, centered=False))
    assert run(index, handbook, embedder=embedder) == "a0c0r0u3f0"
    assert len(calls) == 1 and index.without_vector(embedder.name) == []


def test_embeddings_of_another_model_replace_the_old(index: DocumentIndex, handbook: Path, embedder: Embedder) -> None:
    run(index, handbook, embedder=embedder)
    run(index, handbook, embedder=Embedder("another", embed, centered=False))
    assert len(index.vectors(embedder.name)[0]) == 0 and len(index.vectors("another")[0]) == 4


def test_files_and_folders_and_what_is_neither(index: DocumentIndex, handbook: Path, tmp_path: Path) -> None:
    assert run(index, handbook / "leave.md", handbook, handbook / "leave.md") == "a3c0r0u0f0"
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "none", "no such file or folder"), (tmp_path / "empty", "has no documents")):
        with pytest.raises(InputError, match=message):
            run(index, path)
    assert len(index.documents()) == 3  # an emptied folder does not empty the index


def test_a_link_to_a_folder_is_not_followed(index: DocumentIndex, handbook: Path) -> None:
    (handbook / "loop").symlink_to(handbook, target_is_directory=True)
    assert run(index, handbook) == "a3c0r0u0f0"


def test_documents_are_named_by_name_path_and_folder(index: DocumentIndex, handbook: Path) -> None:
    run(index, handbook)
    names = lambda *given: [each.name for each in matching(index, given)]  # noqa: E731
    assert names("handbook/leave.md") == names(str(handbook / "leave.md")) == ["handbook/leave.md"]
    assert len(names("handbook")) == 3 and names("handbook/deep/") == ["handbook/deep/money.html"]
    with pytest.raises(InputError) as caught:
        names("handbook/leve.md")
    assert caught.value.hint == "did you mean handbook/leave.md?"


def test_passages_of_a_pdf_have_its_pages(index: DocumentIndex, tmp_path: Path) -> None:
    (tmp_path / "terms.pdf").write_bytes(pdf([["Wolves howl."], ["Lambs bleat."]]))
    run(index, tmp_path / "terms.pdf", words=20)
    (passage,) = index.passages(index.by_words("wolves", 9))
    assert passage.page == 1 and place_of(passage) == "terms  (terms.pdf, page 1)"

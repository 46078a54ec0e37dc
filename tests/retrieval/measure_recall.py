"""Measures what retrieval finds: `python -m tests.retrieval.measure_recall --model MODEL --cache docs.db`.

The sections of a textbook of economics are documents, without the questions at their ends. Each review question is
searched for; it is right where one of the first k passages is of the question's own section.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

from synthe_core.errors import InputError
from synthe_core.events import Progress
from synthe_core.retrieval.by import By
from synthe_core.retrieval.document_index import DocumentIndex
from synthe_core.retrieval.embedder import Embedder, open_embedder
from synthe_core.retrieval.indexing import index_documents
from synthe_core.retrieval.search import Searcher
from tests.paths import SHARED

BOOK = SHARED / "data" / "corpora" / "openstax-ccby" / "principles-economics.txt"
EXERCISES = re.compile(
    r"^(Self-Check Questions?|Review Questions?|Critical Thinking Questions?|Problems|References)$", re.M
)
REVIEW = re.compile(
    r"^Review Questions?$\n(.*?)(?=^(?:Critical Thinking Questions?|Problems|References)$|\Z)", re.M | re.S
)
DEPTHS = (1, 5, 10)


def sections(count: int | None = None) -> list[tuple[str, list[str]]]:
    """(text, review questions) of each section of the book, or of the first `count`."""
    result = []
    for section in BOOK.read_text().split("\n\n\n"):
        text = section.strip()
        exercises = EXERCISES.search(text)
        review = REVIEW.search(text)
        questions = [each.strip() for each in review[1].split("\n\n") if "?" in each] if review else []
        if body := text[: exercises.start()].strip() if exercises else text:
            result.append((body, questions))
    return result[:count]


def build(folder: Path, file: Path, embedder: Embedder | None, count: int | None) -> DocumentIndex:
    for number, (text, _) in enumerate(sections(count)):
        path = folder / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            path.write_text(text)
    index = DocumentIndex(file, create=True)
    for event in index_documents(index, [folder], embedder):
        if isinstance(event, Progress) and event.what == "embedding":
            print(f"embedded {event.done:,.0f} of {event.total:,.0f}", flush=True)
    return index


def recall(searcher: Searcher, by: By, count: int | None) -> dict[str, float]:
    """The share of questions whose section is among the first k passages, the mean reciprocal rank, and the time."""
    ranks, began = [], time.perf_counter()
    for number, (_, questions) in enumerate(sections(count)):
        for question in questions:
            names = [Path(each.passage.document).stem for each in searcher.search(question, max(DEPTHS), by)]
            right = f"{number:03}"
            ranks.append(names.index(right) + 1 if right in names else 0)
    taken = time.perf_counter() - began
    shares = {f"recall@{k}": sum(0 < rank <= k for rank in ranks) / len(ranks) for k in DEPTHS}
    mean = sum(1 / rank for rank in ranks if rank) / len(ranks)
    return {**shares, "mrr": mean, "questions": len(ranks), "milliseconds": 1000 * taken / len(ranks)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="whose embeddings are compared; without: words only")
    parser.add_argument("--cache", type=Path, help="a folder for the index, which a later run goes on with")
    parser.add_argument("--sections", type=int, help="the first N sections and their questions; default: all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.cache or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        embedder = open_embedder(options.model) if options.model else None
        searcher = Searcher(build(folder / "sections", folder / "docs.db", embedder, options.sections), embedder)
        for by in By:
            try:
                print(json.dumps({"by": by, **recall(searcher, by, options.sections)}), flush=True)
            except InputError as error:
                print(f"{by}: {error.message}")


if __name__ == "__main__":
    main()

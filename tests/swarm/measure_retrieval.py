"""How often the fact that a question is about is retrieved: by words, by meaning, and by both.

python -m tests.swarm.measure_retrieval MODEL
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.interop.load import load_model
from synthe_core.swarm.knowledge.embedder import Embedder
from synthe_core.swarm.knowledge.fact import Fact
from synthe_core.swarm.knowledge.knowledge import Knowledge
from synthe_core.swarm.knowledge.search import by_meaning, by_words, search
from synthe_core.swarm.models import BASE
from synthe_core.swarm.store import Store
from synthe_core.swarm.text_embedding import TextEmbedder
from tests.swarm.retrieval_data import QUESTIONS

RANKS = (1, 3, 5)


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder, AsyncEngine([load_model(Path(model), BASE)]) as engine:
        knowledge, embed = Knowledge(Store(Path(folder) / "swarm.db")), Embedder(model, TextEmbedder(engine, BASE))
        ids = [knowledge.add("ada", *fact).fact.id for *fact, _ in QUESTIONS]
        methods = {
            "words": lambda question: by_words(knowledge.facts, "ada", question),
            "meaning": lambda question: by_meaning(knowledge.facts, "ada", question, embed),
            "both": lambda question: search(knowledge.facts, "ada", question, embed=embed),
        }
        for name, method in methods.items():
            report(name, ids, [method(question) for *_, question in QUESTIONS])


def report(name: str, ids: list[int], results: list[list[Fact]]) -> None:
    hits = [
        sum(id in [fact.id for fact in facts[:rank]] for id, facts in zip(ids, results, strict=True)) for rank in RANKS
    ]
    shares = "  ".join(f"@{rank} {hit / len(ids):.2f}" for rank, hit in zip(RANKS, hits, strict=True))
    print(f"{name}: {shares}  returned {sum(map(len, results)) / len(ids):.1f}")


if __name__ == "__main__":
    main(sys.argv[1])

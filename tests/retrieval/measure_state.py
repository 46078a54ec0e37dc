"""Measures a document read once into a state beside retrieval: docs/results/documents.md.

python -m tests.retrieval.measure_state MODEL [--section 12] [--tokens 1500] [--questions 20] [--words 60]

The questions are gaps in sentences of a section of a textbook of economics; the answer is the word that is left out.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from synthe_core.data.document_text import DocumentText, read_document
from synthe_core.data.document_text.passages import sentences
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.evaluation.document_questions import Knowledge, Question, WayScore, _prompt, _score, _ways
from synthe_core.events import Notice, drain
from synthe_core.retrieval.document_index import DocumentIndex
from synthe_core.retrieval.indexing import index_documents
from synthe_core.retrieval.prompt import with_passages
from synthe_core.retrieval.retriever import Retriever, token_budget
from synthe_core.retrieval.search import Searcher
from synthe_core.storage.checkpoint import Checkpoint
from tests.retrieval.measure_recall import sections

WORD = re.compile(r"[A-Za-z]{5,}|\$?\d[\d,.]*\d%?")
COMMON = 3
"""A word that stands so often in the text is no answer."""


def gaps(text: str, count: int) -> list[Question]:
    """Sentences with a rare word left out."""
    words = WORD.findall(text)
    rare = [each for each in dict.fromkeys(words) if words.count(each) < COMMON]
    draw, made = random.Random(0), []
    for sentence in sentences(text):
        own = [each for each in WORD.findall(sentence) if each in rare]
        if not own or not 60 < len(sentence) < 260:
            continue
        answer = own[-1]
        gap = " ".join(sentence.split()).replace(answer, "____", 1)
        question = f"Which word is missing? Answer with the word only: {gap}"
        made.append(Question(question=question, answers=[answer]))
    return draw.sample(made, min(count, len(made)))


def cut(text: str, tokenizer: Tokenizer, count: int) -> str:
    """The first sentences of at most `count` tokens."""
    beginning = ""
    for paragraph in text.split("\n\n"):
        if len(tokenizer.encode(f"{beginning}\n\n{paragraph}")) > count:
            break
        beginning = f"{beginning}\n\n{paragraph}".strip()
    return beginning


def retrieved(folder: Path, document: Path, tokenizer: Tokenizer, every: list[Question], words: int) -> list[Question]:
    """The questions after the passages that retrieval gives them."""
    index = DocumentIndex(folder / "docs.db", create=True)
    drain(index_documents(index, [document], words=words))
    retriever = Retriever(Searcher(index), token_budget(8192), lambda text: len(tokenizer.encode(text)))
    return [
        each.model_copy(update={"question": with_passages(each.question, retriever.retrieve(each.question))})
        for each in every
    ]


def measure(model: Path, section: int, tokens: int, count: int, words: int) -> Iterator[str]:
    opened = Checkpoint.open(model)
    tokenizer = opened.tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = folder / "chapter.txt"
        path.write_text(cut("\n\n".join(text for text, _ in sections()[section:]), tokenizer, tokens))
        text = read_document(path)
        every = gaps(text.text, count)
        size = len(tokenizer.encode(text.text))
        yield f"{size:,} tokens of text, {len(text.text.encode()):,} bytes, {len(every)} questions"
        for knowledge in _ways(opened, text, None, "cpu", folder):
            assert not isinstance(knowledge, Notice), knowledge.message
            if knowledge.way == "nothing":
                yield line(drain_score(knowledge, text, every), read(knowledge, None, every))
                with_them = retrieved(folder, path, tokenizer, every, words)
                index = knowledge._replace(way="retrieval", bytes=(folder / "docs.db").stat().st_size)
                yield line(drain_score(index, text, with_them), read(knowledge, None, with_them))
            elif knowledge.way == "saved state":
                own = read(knowledge, text, every)
                prefix = int(knowledge.session.state.position[0]) + 1 if knowledge.session else 0
                yield line(drain_score(knowledge, text, every), own - prefix * len(every)) + f"; once {prefix} tokens"
            else:
                yield f"reading the document: {knowledge.preparation:.1f} s"


def drain_score(knowledge: Knowledge, text: DocumentText, every: list[Question]) -> WayScore:
    scoring = _score(knowledge, text, every)
    while True:
        try:
            next(scoring)
        except StopIteration as end:
            score: WayScore = end.value
            return score


def read(knowledge: Knowledge, text: DocumentText | None, every: list[Question]) -> int:
    """Tokens of the prompts of all questions."""
    return sum(len(_prompt(knowledge.model, text, each.question)) for each in every)


def line(score: WayScore, tokens: int) -> str:
    right = score.accuracy * len(score.answers)
    return (
        f"{score.way}: contained {right:.0f} of {len(score.answers)}, nats {score.nats:.2f}, "
        f"{score.seconds:.2f} s and {tokens / len(score.answers):,.0f} tokens a question, {score.bytes:,} bytes, "
        f"{score.preparation:.2f} s before"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--section", type=int, default=12, help="the first section of the text")
    parser.add_argument("--tokens", type=int, default=1500, help="of the text at most")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--words", type=int, default=60, help="of a passage at most")
    options = parser.parse_args()
    for each in measure(options.model, options.section, options.tokens, options.questions, options.words):
        print(each, flush=True)


if __name__ == "__main__":
    main()

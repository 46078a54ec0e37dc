"""`eval document`: each way has the figures of its whole prompt read at once; a state is the document in context."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from synthe_cli.app import app
from synthe_core.data.chat_template import render, with_template
from synthe_core.data.document_text.matching import contains
from synthe_core.errors import InputError
from synthe_core.evaluation import document_questions
from synthe_core.evaluation.document_questions import evaluate, read_questions
from synthe_core.events import Notice, Result
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training import recipe_from_checkpoint, train
from tests.inference.conftest import written

TEXT = "# Mill\n\nThe mill grinds wheat for nine villages.\n\nOttilie Brand keeps the key.\n"
QUESTIONS: list[dict[str, Any]] = [
    {"question": "What is ground?", "answers": ["wheat", "corn"], "distractors": ["rye", "oats and barley"]},
    {"question": "Who has the key?", "answers": ["Ottilie Brand"], "distractors": ["Anna Moll"], "section": "Water"},
    {"question": "How many villages?", "answers": ["nine"]},
]
MAX_TOKENS = 16  # of an answer here
BLOCKS = {
    "recurrent": [{"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 32}],
    "attention": [{"type": "attention", "heads": 2}, {"type": "mlp", "hidden": 32}],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(document_questions, "MAX_TOKENS", MAX_TOKENS)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    (tmp_path / "mill.md").write_text(TEXT)
    return tmp_path / "mill.md"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n\n")
    return tmp_path / "questions.jsonl"


def ways(*arguments: Any, **keys: Any) -> dict[str, dict[str, Any]]:
    *_, result = evaluate(*arguments, **keys, device="cpu")
    assert isinstance(result, Result) and result.values["questions"] == len(QUESTIONS)
    listed: Any = result.values["ways"]
    return {each["way"]: each for each in listed}


class Reading:
    """A model that reads the whole prompt again for every token."""

    def __init__(self, checkpoint: Checkpoint, text: str | None) -> None:
        self.model = checkpoint.model().eval()
        assert isinstance(self.model, LanguageModel)
        self.tokenizer = with_template(checkpoint.tokenizer())
        self.text = text

    def prompt(self, question: str) -> list[int]:
        system = [] if self.text is None else [{"role": "system", "content": self.text}]
        return self.tokenizer.encode(render(self.tokenizer, [*system, {"role": "user", "content": question}]))

    @torch.no_grad()
    def log_probabilities(self, tokens: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([tokens]))[0][0].log_softmax(-1)

    def answer(self, question: str) -> str:
        tokens = self.prompt(question)
        written: list[int] = []
        while len(written) < MAX_TOKENS:
            token = int(self.log_probabilities([*tokens, *written])[-1].argmax())
            if token in self.tokenizer.ends or token == ord("\n"):
                break
            written.append(token)
        return self.tokenizer.decode(written).strip()

    def score(self, question: str, option: str) -> tuple[float, int]:
        """log p of an option, and its tokens."""
        before, ids = self.prompt(question), self.tokenizer.encode(" " + option)
        rows = self.log_probabilities([*before, *ids])[len(before) - 1 : -1]
        return float(rows[torch.arange(len(ids)), torch.tensor(ids)].sum()), len(ids)


def check(way: dict[str, Any], reading: Reading) -> None:
    answers = [reading.answer(each["question"]) for each in QUESTIONS]
    assert way["answers"] == answers
    right = [
        any(contains(answer, known) for known in each["answers"])
        for answer, each in zip(answers, QUESTIONS, strict=True)
    ]
    assert way["accuracy"] == pytest.approx(sum(right) / 3)
    nats, chosen = [], []
    for each in QUESTIONS:
        total, count = reading.score(each["question"], each["answers"][0])
        nats.append(-total / count)
        if "distractors" in each:
            others = [reading.score(each["question"], text)[0] / len(text) for text in each["distractors"]]
            chosen.append(total / len(each["answers"][0]) > max(others))
    assert way["nats"] == pytest.approx(sum(nats) / 3, rel=1e-4)
    assert way["choice"] == pytest.approx(sum(chosen) / 2)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_way_has_the_figures_of_its_prompt(kind: str, tmp_path: Path, document: Path, questions: Path) -> None:
    base = written(tmp_path / "base", BLOCKS[kind])
    scores = ways(base, document, questions)
    assert list(scores) == ["nothing", "in context", "saved state"]
    opened = Checkpoint.open(base)
    check(scores["nothing"], Reading(opened, None))
    check(scores["in context"], Reading(opened, TEXT))
    assert scores["nothing"]["nats"] != pytest.approx(scores["in context"]["nats"], rel=1e-3)
    figures = ("accuracy", "choice", "nats", "answers")
    assert [scores["saved state"][key] for key in figures] == [scores["in context"][key] for key in figures]
    assert scores["nothing"]["bytes"] == 0 and scores["in context"]["bytes"] == len(TEXT.encode())
    assert scores["saved state"]["bytes"] > 1000


@pytest.fixture
def adapted(tmp_path: Path) -> Callable[[Path], Path]:
    """Trains an adapter of a model on answers to the questions."""

    def make(base: Path) -> Path:
        rows = [{"prompt": each["question"], "completion": f"{each['answers'][0]}\n"} for each in QUESTIONS]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        recipe = recipe_from_checkpoint(
            base,
            [
                "objective.type=sft", f"data.sources={tmp_path / 'rows.jsonl'}", "data.validation=0",
                "train.lora={rank: 8}", "train.budget=120steps", "train.batch=3", "train.micro_batch=3",
                "train.lr=1e-2", "train.validations=1", "runtime.threads=1", "runtime.precision=float32",
                "runtime.device=cpu",
            ],
        )  # fmt: skip
        list(train(Recipe.model_validate(recipe.model_dump()), init=base, out=tmp_path / "adapter"))
        return tmp_path / "adapter"

    return make


def test_an_adapter_answers_without_the_document(
    adapted: Callable[[Path], Path], tmp_path: Path, document: Path, questions: Path
) -> None:
    base = written(tmp_path / "base", BLOCKS["recurrent"])
    adapter = adapted(base)
    scores = ways(base, document, questions, adapter=adapter)
    assert list(scores) == ["nothing", "in context", "saved state", "adapter"]
    check(scores["adapter"], Reading(Checkpoint.open(adapter), None))
    assert scores["adapter"]["nats"] < 0.5 < scores["nothing"]["nats"]
    answers = zip(scores["adapter"]["answers"], QUESTIONS, strict=True)
    assert all(answer.startswith(each["answers"][0]) for answer, each in answers)
    assert scores["adapter"]["choice"] == 1.0
    opened = Checkpoint.open(adapter)
    assert opened.adapter is not None
    assert scores["adapter"]["bytes"] == sum(tensor.nbytes for tensor in opened.adapter.tensors.values())
    options = {"document": document, "questions": questions, "adapter": adapter, "device": "cpu"}
    arguments = [str(each) for name, value in options.items() for each in (f"--{name}", value)]
    shown = CliRunner().invoke(app, ["eval", "document", str(base), *arguments])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0] == f"3 questions about {document}"
    assert lines[2].split() == ["way", "contained", "choice", "nats", "once", "each", "size"]
    (row,) = [line for line in lines if line.startswith("adapter")]
    assert row.split()[2:4] == ["100.0%", f"{scores['adapter']['nats']:.3f}"]


def test_questions_about_a_document_that_is_too_long_go_without_it(
    tmp_path: Path, document: Path, questions: Path
) -> None:
    base = written(tmp_path / "base", BLOCKS["attention"], positions=256)
    document.write_text(TEXT * 4)
    events = list(evaluate(base, document, questions, device="cpu"))
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert "tokens and the model reads 256" in notice.message
    result = events[-1]
    assert isinstance(result, Result)
    listed: Any = result.values["ways"]
    assert [each["way"] for each in listed] == ["nothing"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"question": "a", "answers": ["b"]}\n{"question": "a"}', r"questions\.jsonl:2: answers: Field required"),
        (b'{"question": "", "answers": ["b"]}', r"questions\.jsonl:1: question: "),
        (b'{"question": "a", "answers": []}', r"questions\.jsonl:1: answers: "),
        (b"\nno JSON", r"questions\.jsonl:2: the line: Invalid JSON"),
        (b"\n \n", "has no questions"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_file_of_other_lines_is_refused_in_one_line(tmp_path: Path, lines: bytes, message: str) -> None:
    (tmp_path / "questions.jsonl").write_bytes(lines)
    with pytest.raises(InputError, match=message) as refused:
        read_questions(tmp_path / "questions.jsonl")
    assert "\n" not in refused.value.message


def test_files_that_are_not_there(tmp_path: Path, document: Path, questions: Path) -> None:
    base = written(tmp_path / "base", BLOCKS["recurrent"])
    with pytest.raises(InputError, match="cannot be read"):
        list(evaluate(base, document, tmp_path / "none.jsonl", device="cpu"))
    with pytest.raises(InputError, match="no such document"):
        list(evaluate(base, tmp_path / "none.md", questions, device="cpu"))

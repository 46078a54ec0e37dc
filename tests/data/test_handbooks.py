"""The fictional handbooks and their questions: what the tests and the results of document training read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synthe_core.data.document_text import read_document
from tests.paths import ROOT

FOLDER = ROOT / "tests" / "data" / "handbooks"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.md"))]


def questions(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_there_are_three() -> None:
    assert NAMES == ["harbour", "press", "seeds"]


@pytest.mark.parametrize("name", NAMES)
def test_half_of_forty_questions_is_held_out(name: str) -> None:
    sides = [questions(FOLDER / f"{name}-{side}.jsonl") for side in ("development", "held-out")]
    assert [len(side) for side in sides] == [20, 20]
    assert len({row["question"] for side in sides for row in side}) == 40


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["development", "held-out"])
def test_the_passage_has_the_answer(name: str, side: str) -> None:
    text = read_document(FOLDER / f"{name}.md").text
    for row in questions(FOLDER / f"{name}-{side}.jsonl"):
        passage = section(text, row["passage"]).lower()
        assert any(answer.lower() in passage for answer in row["answers"]), row
        assert len({*row["distractors"], row["answers"][0]}) == 4, row

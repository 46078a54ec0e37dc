"""Questions of one turn or several, in the format of MT-Bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from synthe_core.data.content import content, damage
from synthe_core.errors import InputError

LAYOUT = 'a line is {"question_id": 81, "category": "writing", "turns": ["...", "..."], "reference": ["...", "..."]}'


class Question(BaseModel):
    """turns: what the user says, one after the other. reference: right answers that the judge sees, one a turn."""

    question_id: int | str
    category: str = "all"
    turns: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    reference: list[str | None] = []


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The questions of a file of JSON lines, at most `limit`. InputError for a line that is none, and for equal ids."""
    if not path.is_file():
        raise InputError(f"no such file: {path}", f"{LAYOUT}; MT-Bench's question.jsonl is such a file")
    with damage(path):
        lines = b"".join(content(path)).splitlines()
    result: dict[int | str, Question] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = Question.model_validate(json.loads(line))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            place = ".".join(map(str, fault["loc"]))
            raise InputError(f"{path}, line {number}: {place or 'it'}: {fault['msg'].lower()}", LAYOUT) from None
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error}", LAYOUT) from None
        if question.question_id in result:
            raise InputError(f"{path}, line {number}: another question has the id {question.question_id}")
        result[question.question_id] = question
    if not result:
        raise InputError(f"{path} has no questions", LAYOUT)
    return list(result.values())[:limit]

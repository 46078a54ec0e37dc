"""General questions with four answers each: whether a specialist has lost what the base knew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError


@dataclass(frozen=True)
class Question:
    """answer: the index of the right choice."""

    question: str
    choices: Sequence[str]
    answer: int


def read_questions(path: Path) -> list[Question]:
    """JSON lines with question, choices and answer. InputError names a line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"promotion.tasks: {path} cannot be read: {error}") from None
    questions = [_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise InputError(f"promotion.tasks: {path} has no question", "one a line: question, choices, answer")
    return questions


def _question(line: str, place: str) -> Question:
    hint = '{"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}'
    try:
        row: Any = json.loads(line)
        question = Question(row["question"], row["choices"], row["answer"])
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{place} is no question", hint) from None
    choices = question.choices
    is_list = isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c.strip() for c in choices)
    is_index = type(question.answer) is int and is_list and 0 <= question.answer < len(choices)
    if not (isinstance(question.question, str) and question.question.strip() and is_index):
        raise InputError(f"{place} is no question", hint)
    return question


_TABLE = """
The capital of France is | Paris | Rome | Madrid | Berlin
The opposite of hot is | cold | warm | tall | wet
Two plus three is | five | six | four | nine
Water freezes when it is very | cold | loud | bright | sweet
A week has seven | days | months | hours | years
Bees make | honey | milk | bread | paper
The sun rises in the | east | west | kitchen | evening
You write on paper with a | pen | spoon | pillow | shoe
A baby dog is called a | puppy | kitten | calf | chick
The color of grass is | green | purple | orange | pink
The largest ocean is the | Pacific | Baltic | Caspian | Aral
Ice is frozen | water | wood | sand | gold
We see with our | eyes | ears | hands | knees
The first month of the year is | January | June | October | August
A triangle has three | sides | wheels | floors | wings
Shakespeare wrote | plays | software | recipes | laws
In winter trees often lose their | leaves | roots | bark | names
Cows give | milk | eggs | wool | honey
The Earth moves around the | Sun | Moon | city | sea
To cut bread you use a | knife | broom | pencil | towel
The plural of child is | children | childs | childes | childrens
Ten minus four is | six | five | seven | ten
Fish live in | water | trees | sand | clouds
A doctor works in a | hospital | stable | mine | harbor
Rome is the capital of | Italy | Spain | Norway | Egypt
The opposite of up is | down | left | fast | blue
Birds have feathers and | wings | wheels | fins | horns
At night the sky is | dark | green | square | salty
A piano is a musical | instrument | animal | country | number
Bread is made from | flour | stones | glass | oil paint
""".strip()

DEFAULT = tuple(
    Question(question, choices, 0)
    for question, *choices in ([part.strip() for part in line.split("|")] for line in _TABLE.splitlines())
)

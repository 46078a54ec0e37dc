"""What the gate decides of its figures, and that its figures are those of the models."""

from __future__ import annotations

import math
from dataclasses import replace
from threading import Event as Stop
from typing import Any

import pytest

from synthe_core.data.spec import DataSpec
from synthe_core.errors import InputError
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.swarm.learning.figures import Figures, PairFigures
from synthe_core.swarm.learning.gate import Gate
from synthe_core.swarm.learning.questions import DEFAULT, Question, read_questions
from synthe_core.swarm.spec import PromotionSpec
from tests.adapters.conftest import saved

PAIRS = PairFigures(20, 0.9, (0.6, 0.8), (1.0, 3.0))
GOOD = Figures(PAIRS, PAIRS, (1.0, 1.01), (0.8, 0.8), 30)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"earlier": None}, None),
        ({"held_out": replace(PAIRS, wins=0.59)}, "better on 59% of 20 held-out pairs, not 60%"),
        ({"held_out": replace(PAIRS, pairs=4)}, "4 held-out pairs fit into learning.sequence, not 5"),
        ({"held_out": replace(PAIRS, accuracy=(0.6, 0.55))}, "right on 55%, before 60%"),
        ({"held_out": replace(PAIRS, wins=math.nan)}, "better on nan% of"),
        ({"earlier": replace(PAIRS, accuracy=(0.9, 0.86))}, None),
        ({"earlier": replace(PAIRS, accuracy=(0.9, 0.84))}, "held out earlier: right on 84%, before 90%"),
        ({"earlier": replace(PAIRS, margin=(10.0, 7.1))}, None),
        ({"earlier": replace(PAIRS, margin=(10.0, 6.9))}, "held out earlier: preferred by 6.90 nats, before by 10.00"),
        ({"earlier": replace(PAIRS, margin=(-1.0, -1.4))}, "held out earlier: preferred by -1.40 nats"),
        ({"canary": (1.0, 1.029)}, None),
        ({"canary": (1.0, 1.031)}, "1.031 bits per byte, before 1.000"),
        ({"canary": (1.0, math.nan)}, "bits per byte"),
        ({"tasks": (0.8, 0.71)}, None),
        ({"tasks": (0.8, 0.69)}, "general questions: right on 69%, before 80%"),
    ],
)
def test_each_bound_decides(changes: dict[str, Any], fault: str | None) -> None:
    faults = replace(GOOD, **changes).faults(PromotionSpec())
    assert len(faults) == (fault is not None) and (fault is None or fault in faults[0]), faults


def test_margins_are_counted() -> None:
    figures = PairFigures.of([0.0, 1.0, -1.0, 2.0], [1.0, 1.0, -2.0, 3.0])
    assert figures == PairFigures(4, 2.5 / 4, (2.5 / 4, 3 / 4), (0.5, 0.75))


def test_questions_are_read_and_their_likeliest_choice_counts(base, tmp_path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}\n\n')
    assert read_questions(path) == [Question("2 + 2 =", ["3", "4"], 1)]
    for line in (
        '{"question": "x", "choices": ["3"], "answer": 0}',
        '{"question": "x", "choices": ["3", "4"], "answer": 2}',
        "x",
    ):
        path.write_text(f"{line}\n")
        with pytest.raises(InputError, match=r"tasks.jsonl:1 is no question"):
            read_questions(path)
    gate = Gate(base, DataSpec(sequence=128), PromotionSpec(), Stop())
    adapter = LoadedModel.load(base).read_adapter(saved(tmp_path / "adapter", base, {"rank": 4}).path)
    tokens = {text: [*text.encode()] for text in ("It is", "It is yes", "It is no")}
    likely = []
    for version in (None, adapter):
        scores = []
        for text in (" yes", " no"):
            whole = tokens["It is" + text]
            batch = gate._batch([Question("It is", [text, " x"], 0)])
            assert batch.inputs[0, : len(whole) - 1].tolist() == whole[:-1]
            scores.append(float(gate._logprobs(version, batch)[0]))
        likely.append(max((0, 1), key=scores.__getitem__))
    work = gate._tasks([None, adapter], [Question("It is", ["yes", "no"], likely[0])])
    while True:
        try:
            next(work)
        except StopIteration as end:
            assert end.value == [1.0, float(likely[1] == likely[0])]
            break
    assert len(DEFAULT) == 30 and all(len(set(each.choices)) == 4 for each in DEFAULT)

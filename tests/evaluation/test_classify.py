"""`eval classify`: the figures are those of the model's own passes; foreign and missing labels are named."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.evaluation.classify import evaluate
from synthe_core.events import Notice, Progress, Result
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training import train
from tests.training.conftest import _own_folders, cache, of, recipe, text  # noqa: F401  (fixtures)

KINDS = ("cold", "mild", "warm")


def write(path: Path, rows: list[tuple[str, str | None]]) -> str:
    path.write_text("\n".join(json.dumps({"body": body, "kind": kind}) for body, kind in rows))
    return str(path)


@pytest.fixture
def run(recipe, tmp_path):  # noqa: F811
    draw = np.random.RandomState(0)
    rows = [
        (
            f"{number} " + " ".join(draw.choice(["the", KINDS[number % 3]], 3)) + " " + KINDS[number % 3],
            KINDS[number % 3],
        )
        for number in range(150)
    ]
    config = recipe(
        model={"block": [{"type": "bidirectional_attention", "heads": 2}], "head": {"classes": 3}},
        data={
            "sources": write(tmp_path / "train.jsonl", rows),
            "field": "body",
            "labels": "field:kind",
            "sequence": 32,
            "validation": 0.2,
        },
        budget="40steps",
        batch=16,
        lr=3e-2,
    )
    list(train(config, out=tmp_path / "run"))
    return tmp_path / "run"


def result(events: list) -> Result:
    assert isinstance(events[-1], Result)
    return events[-1]


def test_texts_have_the_mean_of_their_passages(run, tmp_path):
    long = "the warm warm " * 9  # four passages of 32 bytes, the last of 30
    source = write(tmp_path / "test.jsonl", [("it is cold", "cold"), (long, "warm"), ("mild mild mild", "warm")])
    events = list(evaluate(run, sources=[source], device="cpu", plot=tmp_path / "c.svg"))
    values = result(events).values
    assert values["texts"] == 3 and values["passages"] == 6
    assert of(events, Progress)[-1].what == "classifying" and of(events, Progress)[-1].done == 6
    opened = Checkpoint.open(run)
    model, tokenizer = opened.classifier().eval(), opened.tokenizer()
    cuts = [["it is cold"], [long[i : i + 32] for i in range(0, 127, 32)], ["mild mild mild"]]
    means = []
    for cut in cuts:
        ids = [tokenizer.encode(part) + ([tokenizer.end] if part is cut[-1] else []) for part in cut]
        with torch.no_grad():
            means.append(torch.stack([model(torch.tensor([each]))[0].softmax(-1) for each in ids]).mean(0))
    given = torch.stack(means).argmax(-1).tolist()
    expected = np.zeros((3, 3), dtype=int)
    for label, each in zip([0, 2, 2], given, strict=True):
        expected[label, each] += 1
    assert values["confusion"] == expected.tolist()
    assert values["accuracy"] == pytest.approx(np.trace(expected) / 3) and 0 < values["low"] < values["high"] <= 1
    nats = [-float(means[i][label].log()) for i, label in enumerate([0, 2, 2])]
    assert values["nats"] == pytest.approx(np.mean(nats), rel=1e-4)
    assert [each["name"] for each in values["classes"]] == list(KINDS)
    root = ElementTree.fromstring((tmp_path / "c.svg").read_text())
    assert sum(each.tag.endswith("rect") for each in root.iter()) == 9
    assert result(events).path == tmp_path / "c.svg"


def test_its_own_validation_text_is_the_usual_one_and_can_be_limited(run):
    values = result(list(evaluate(run, device="cpu"))).values
    assert values["texts"] == 30 and values["accuracy"] > 0.8 > values["chance"]
    few = result(list(evaluate(run, device="cpu", limit=7))).values
    assert few["texts"] == 7 and sum(map(sum, few["confusion"])) == 7


def test_a_folder_a_class(run, tmp_path):
    for kind in ("cold", "warm"):
        (tmp_path / "texts" / kind).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "texts" / kind / f"{number}.txt").write_text(f"{number} {kind} {kind} the {kind}")
    values = result(list(evaluate(run, sources=[str(tmp_path / "texts")], labels="path", device="cpu"))).values
    assert [each["texts"] for each in values["classes"]] == [3, 0, 3]


def test_other_labels_are_left_out_and_named(run, tmp_path):
    rows = [("cold cold", "cold"), ("hot", "hot"), ("hot hot", "hot"), ("wet", "wet"), ("nothing", None)]
    events = list(evaluate(run, sources=[write(tmp_path / "test.jsonl", rows)], device="cpu"))
    assert result(events).values["texts"] == 1
    assert [event.message for event in of(events, Notice)] == [
        "3 texts are left out, whose labels are no classes of the encoder: hot, wet",
        "1 texts without a label are left out",
    ]


@pytest.mark.parametrize(
    ("rows", "labels", "message", "hint"),
    [
        ([("a", "colt"), ("b", "colt")], None, "no class of the texts' labels: colt", "did you mean 'cold'?"),
        ([("a", None)], None, "no text has a label by 'field:kind'", "--labels path"),
        ([("a", "cold")], "path", "no text has a label by 'path'", "field:NAME"),
        ([("a", "cold")], "field:kin", "unknown field 'kin'", "did you mean 'kind'?"),
    ],
)
def test_labels_that_do_not_serve(run, tmp_path, rows, labels, message, hint):
    with pytest.raises(InputError, match=message.replace("'", ".")) as raised:
        list(evaluate(run, sources=[write(tmp_path / "test.jsonl", rows)], labels=labels, device="cpu"))
    assert hint in raised.value.hint


def test_a_language_model_has_no_classes_and_a_chart_has_two_forms(recipe, tmp_path):  # noqa: F811
    list(train(recipe(budget="1steps"), out=tmp_path / "lm"))
    with pytest.raises(InputError, match="which has no classes"):
        list(evaluate(tmp_path / "lm", device="cpu"))
    with pytest.raises(InputError, match="cannot draw into"):
        list(evaluate(tmp_path / "lm", plot=Path("c.png")))

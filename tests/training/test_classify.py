"""An encoder is trained by the same trainer: its loss falls, it is resumed bit for bit, and its checkpoint says so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from threading import Event as Stop
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from synthe_cli.app import app
from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Metric, Result
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training import train
from synthe_core.training.gradients import accumulate_gradients
from synthe_core.training.non_finite import first_non_finite
from synthe_core.training.objectives import objective_for
from synthe_core.training.settings import Settings
from tests.training.conftest import assert_same, of

BLOCK = [
    {"type": "spectral", "points": 9},
    {"type": "attention", "heads": 2, "window": 8},
    {"type": "mlp", "hidden": 32},
]


@pytest.fixture
def labelled(text: Path) -> Path:
    """Rows whose class is the word that they hold more of, in a noise of other words."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in range(150):
        kind = ("cold", "warm", "mild")[number % 3]
        words = [kind if torch.rand((), generator=draw) < 0.5 else "the" for _ in range(2 + number % 7)]
        rows.append({"body": f"{number} " + " ".join([*words, kind]), "kind": kind})
    path = text / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def encoder(recipe: Any, labelled: Path) -> Any:
    def make(model: dict[str, Any] | None = None, **train: Any) -> Recipe:
        return recipe(
            model={"block": BLOCK, "head": {"classes": 3}, "patch": {"stride": 2, "taps": 4}} | (model or {}),
            data={"sources": str(labelled), "field": "body", "labels": "field:kind", "sequence": 32, "limit": "1MB"},
            **train,
        )

    return make


def test_it_learns_and_reports_its_accuracy(encoder, tmp_path):
    events = list(train(encoder(budget="60steps", batch=16, micro_batch=16, lr=3e-2), out=tmp_path / "run"))
    steps = [event.values for event in of(events, Metric) if event.phase == "train"]
    held_out = [event.values for event in of(events, Metric) if event.phase == "validation"]
    assert steps[0]["loss"] == pytest.approx(math.log(3), rel=1e-3)
    assert steps[-1]["loss"] < 0.3
    assert "bits_per_byte" not in steps[0] and steps[0]["tokens_per_second"] > 0
    assert held_out[-1]["accuracy"] > 0.85 > 0.6 > held_out[-1]["chance"] >= 1 / 3
    assert held_out[-1]["loss"] < 0.5
    result = of(events, Result)[0].values
    assert result["accuracy"] == held_out[-1]["accuracy"]
    assert 16 * 60 < result["tokens"] <= 16 * 60 * 32  # tokens read, and not classes


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "optimizer": "adamw"}], ids=["muon", "average"])
def test_a_resumed_run_equals_an_uninterrupted_one(encoder, settings, tmp_path):
    config = encoder(**settings)
    list(train(config, out=tmp_path / "whole"))
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(config, out=tmp_path / "parts", stop=stop):
            if isinstance(event, Metric) and event.phase == "train" and event.step == 2:
                stop.set()
    torch.manual_seed(9)
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_its_checkpoint_has_class_names_and_does_not_generate(encoder, tmp_path):
    list(train(encoder(budget="30steps", batch=16, lr=3e-2), out=tmp_path / "run"))
    opened = Checkpoint.open(tmp_path / "run")
    assert opened.classes == ["cold", "mild", "warm"]
    assert opened.config["id2label"]["2"] == "warm"
    model, tokenizer = opened.classifier().eval(), opened.tokenizer()
    for text, kind in (("the cold the cold cold", "cold"), ("warm warm the warm", "warm")):
        tokens = torch.tensor([tokenizer.encode(text)])
        assert opened.classes[int(model(tokens).argmax())] == kind
    with pytest.raises(InputError, match="an encoder does not write text"):
        opened.model()
    config = CliRunner().invoke(app, ["generate", str(tmp_path / "run"), "--prompt", "the"])
    assert config.exit_code == 2 and config.stdout == ""
    assert config.stderr.count("\n") == 2 and "an encoder does not write text" in config.stderr


def test_the_command_line_shows_accuracy(encoder, tmp_path):
    (tmp_path / "encoder.yaml").write_text(encoder(budget="2steps").to_yaml())
    shown = CliRunner().invoke(app, ["train", "encoder.yaml", "--out", "run"])
    assert shown.exit_code == 0 and "accuracy" in shown.stderr and "chance" in shown.stderr
    lines = CliRunner().invoke(app, ["train", "encoder.yaml", "--out", "again", "--json"]).stdout.splitlines()
    last = json.loads(lines[-1])
    assert last["event"] == "result" and 0 <= last["values"]["accuracy"] <= 1
    sizes = json.loads(CliRunner().invoke(app, ["recipe", "show", "encoder.yaml", "--json"]).stdout)
    counted = sizes["parameters"]
    assert counted["total"] == sum(count for name, count in counted.items() if name != "total")
    assert {"patch", "pool", "head", "spectral"} < counted.keys()


def test_the_best_checkpoint_is_the_one_of_the_least_loss(encoder, tmp_path):
    events = list(train(encoder(budget="12steps", validations=4, keep=9), out=tmp_path / "run"))
    losses = {event.step: event.values["loss"] for event in of(events, Metric) if event.phase == "validation"}
    assert len(losses) == 4
    assert Checkpoint.open(tmp_path / "run").manifest.step == min(losses, key=lambda step: losses[step])


def test_a_language_model_has_no_classes(recipe, tmp_path):
    list(train(recipe(budget="1steps"), out=tmp_path / "run"))
    opened = Checkpoint.open(tmp_path / "run")
    assert opened.classes == []
    with pytest.raises(InputError, match="which has no classes"):
        opened.classifier()


def test_other_labels_are_another_text(encoder, labelled, tmp_path):
    config = encoder()
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(config, out=tmp_path / "run", stop=stop):
            if isinstance(event, Metric) and event.phase == "train":
                stop.set()
    labelled.write_text(labelled.read_text().replace('"kind": "mild"', '"kind": "soft"'))
    with pytest.raises(InputError, match="has changed since the run began"):
        list(train(config, out=tmp_path / "run", resume=True))


def test_passes_of_any_size_give_the_same_gradient_and_name_what_is_bad(encoder):
    from synthe_core.data.labelled import Labelled, LabelledStream
    from synthe_core.data.prepare import load
    from synthe_core.model.classifier import build_model

    config = encoder(model={"head": {"classes": 3, "pool": "mean"}})
    packed = load(config.data)
    batch = LabelledStream(packed, Labelled.of(packed, 3), 6).next(6)
    torch.manual_seed(0)
    model = build_model(config.model, 257).double()
    torch.nn.init.normal_(model.head.weight)
    objective, gradients = objective_for(model), []
    for rows in (1, 4, 6):
        model.zero_grad()
        outcome = accumulate_gradients(objective, model, batch, Settings(ExecutionContext(), rows), sequence=32)
        assert (outcome.num_targets, outcome.num_tokens) == (6, int(batch.lengths.sum()))
        gradients.append([p.grad.clone() for p in model.parameters()])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b)
    with torch.no_grad():
        model.head.bias[1] = torch.nan
    settings = Settings(ExecutionContext(), 4)
    assert first_non_finite(objective, model, batch, settings, 32, None) == "the weight head.bias"
    with torch.no_grad():
        model.head.bias[1] = 0
        model.head.weight.fill_(1e308)
    assert first_non_finite(objective, model, batch, settings, 32, None) == "the output of head"

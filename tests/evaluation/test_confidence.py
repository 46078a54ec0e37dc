"""`eval confidence` of a small trained model: its scores are the model's own, and its figures those of the scores."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from synthe_core.data.prepare import load
from synthe_core.data.stream import windows
from synthe_core.errors import InputError
from synthe_core.evaluation.calibration import auroc
from synthe_core.evaluation.confidence import BASELINE, HEAD, evaluate, score_quality
from synthe_core.events import Notice, Progress, Result
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training import train
from tests.training.conftest import _own_folders, cache, of, recipe, text  # noqa: F401  (fixtures)

BLOCK = [{"type": "kalman"}, {"type": "mlp", "hidden": 32}]


@pytest.fixture
def run(recipe, tmp_path):  # noqa: F811
    config = recipe(model={"block": BLOCK, "confidence": {"hidden": 8, "weight": 1.0}}, budget="60steps")
    list(train(config, out=tmp_path / "run"))
    return tmp_path / "run"


def result(events: list) -> Result:
    assert isinstance(events[-1], Result)
    return events[-1]


def test_scores_are_those_of_the_model(run):
    events = list(evaluate(run, tokens=512, device="cpu"))
    values = result(events).values
    opened = Checkpoint.open(run)
    model, packed = opened.model().eval(), load(opened.recipe.data)
    top_probs, right = [], []
    with torch.no_grad():
        for window in windows(packed.validation, 16, 512 // 16):
            top = model(window.inputs)[0].softmax(-1).max(-1)
            top_probs.append(top.values.flatten())
            right.append((top.indices == window.targets).flatten())
    top_probs, right = (torch.cat(parts).double().numpy() for parts in (top_probs, right))
    assert values["tokens"] == len(right) == 512
    assert values["accuracy"] == pytest.approx(right.mean())
    by_name = {each["score"]: each for each in values["scores"]}
    assert list(by_name) == [BASELINE, HEAD, "surprise", "confidence"]
    assert by_name[BASELINE]["auroc"] == pytest.approx(auroc(top_probs, right > 0), abs=1e-3)
    assert np.mean([b["score"] * b["answers"] for b in by_name[BASELINE]["bins"]]) * 15 / 512 == pytest.approx(
        top_probs.mean(), rel=1e-5
    )
    assert by_name["surprise"]["ece"] is None and 0 <= by_name["confidence"]["ece"] <= 1
    assert values["ideal_aurc"] < by_name[BASELINE]["aurc"] < 1 - values["accuracy"]
    progress = of(events, Progress)
    assert progress[-1].done == progress[-1].total == 512
    assert not of(events, Notice)


def test_the_head_is_trained_with_the_model(run, recipe, tmp_path):  # noqa: F811
    """In 60 steps it has learned at least how often the model is right; the model is what it would be without it."""
    by_name = {each["score"]: each for each in result(list(evaluate(run, device="cpu"))).values["scores"]}
    assert by_name[HEAD]["ece"] < 0.15
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["confidence"] for line in lines if line["phase"] == "train"]
    assert all(0 < loss < math.log(2) for loss in losses)
    plain = recipe(model={"block": BLOCK}, budget="60steps", clip=None)
    confident = recipe(model={"block": BLOCK, "confidence": {"hidden": 8, "weight": 1.0}}, budget="60steps", clip=None)
    checkpoints = []
    for name, each in (("plain", plain), ("confident", confident)):
        list(train(each, out=tmp_path / name))
        checkpoints.append(dict(Checkpoint.open(tmp_path / name, latest=True).tensors))
    for name, tensor in checkpoints[0].items():
        torch.testing.assert_close(checkpoints[1][name], tensor, rtol=1e-5, atol=1e-6)


def test_a_head_is_trained_on_an_existing_model(recipe, tmp_path):  # noqa: F811
    list(train(recipe(), out=tmp_path / "first"))
    notices = of(list(evaluate(tmp_path / "first", device="cpu")), Notice)
    assert any("no calibrated head" in notice.message for notice in notices)
    config = recipe(model={"confidence": {}}, budget="1steps")
    list(train(config, out=tmp_path / "second", init=tmp_path / "first"))
    scores = result(list(evaluate(tmp_path / "second", device="cpu"))).values["scores"]
    assert [each["score"] for each in scores] == [BASELINE, HEAD]


def test_other_text_and_fewer_tokens(run, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("stone hill sea " * 60)
    values = result(list(evaluate(run, sources=[str(other)], tokens=100, device="cpu"))).values
    assert values["tokens"] == 96  # whole windows of 16
    whole = result(list(evaluate(run, sources=[str(other)], device="cpu"))).values
    assert whole["tokens"] == (15 * 60) // 16 * 16
    with pytest.raises(InputError, match="no such file"):
        list(evaluate(run, sources=[str(tmp_path / "none.txt")], device="cpu"))


def test_no_held_out_text(recipe, tmp_path):  # noqa: F811
    list(train(recipe(data={"validation": 0}), out=tmp_path / "run"))
    with pytest.raises(InputError, match="no held-out text"):
        list(evaluate(tmp_path / "run", device="cpu"))


def test_plots_are_written_as_svg_and_html(run, tmp_path):
    for name in ("a.svg", "a.html"):
        events = list(evaluate(run, tokens=512, device="cpu", plot=tmp_path / name))
        assert result(events).path == tmp_path / name
    root = ElementTree.fromstring((tmp_path / "a.svg").read_text())
    titles = [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "calibrated" in titles and sum(f"{HEAD}: confidence" in each for each in titles) == 15
    assert not any("surprise: confidence" in each for each in titles)  # no probability, so no diagram
    html = (tmp_path / "a.html").read_text()
    assert "<svg" in html and "AURC" in html and "<script" not in html
    assert html.count("http") == 1  # the name of SVG; nothing is loaded
    with pytest.raises(InputError, match="cannot draw into"):
        list(evaluate(run, plot=Path("a.png")))
    with pytest.raises(InputError, match="no such folder"):
        list(evaluate(run, plot=tmp_path / "none" / "a.svg"))


def test_signals_of_uncertainty_rank_in_reverse():
    right = np.array([True, True, False, False])
    surprise = score_quality("surprise", np.array([0.1, 0.2, 3.0, 4.0]), right)
    assert surprise.auroc == 1 and surprise.ece is None and surprise.half == 0
    confidence = score_quality("confidence", np.array([0.9, 0.8, 0.2, 0.1]), right)
    assert (confidence.auroc, confidence.aurc) == (surprise.auroc, surprise.aurc)
    assert confidence.aurc == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert [confidence.risk[0], confidence.risk[-1]] == [(0.25, 0.0), (1.0, 0.5)]

"""A loss or gradient that is no number is named, skipped, and after a while stops the run with good weights saved."""

from __future__ import annotations

import math
import re

import pytest
import torch

from synthe_core.errors import WorkError
from synthe_core.events import Metric, Notice, Saved
from synthe_core.layers.mlp import MLP
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.training import gradients, step, train
from tests.training.conftest import of

REAL = MLP.forward


class Poison(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, upstream):
        return upstream * math.nan


def poison(monkeypatch, bad_batches, how):
    """Makes the second block's MLP go bad in training on the batches numbered in `bad_batches` (from 1)."""
    number = 0

    def count(*args, **rest):
        nonlocal number
        number += 1
        return gradients.accumulate_gradients(*args, **rest)

    def forward(self, x, state, ctx):
        y, state = REAL(self, x, state, ctx)
        if ctx.path.startswith("blocks.1.") and number in bad_batches and self.training:
            y = y * math.inf if how == "output" else Poison.apply(y)
        return y, state

    monkeypatch.setattr(step, "accumulate_gradients", count)
    monkeypatch.setattr(MLP, "forward", forward)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("output", r"the output of blocks\.1\.learners\.1 "),
        ("gradient", r"the gradient of blocks\.1\.learners\.1\.out\.weight"),
    ],
)
def test_the_first_bad_tensor_is_named_and_the_step_skipped(recipe, how, named, tmp_path, monkeypatch):
    poison(monkeypatch, {3, 4}, how)
    events = list(train(recipe(), out=tmp_path / "run"))
    warnings = [notice.message for notice in of(events, Notice) if notice.level == "warning"]
    assert len(warnings) == 2
    for number, text in enumerate(warnings, start=1):
        assert text.startswith("step 3: ")
        assert f"({number} in a row)" in text
        assert re.search(named, text)
    steps = [m for m in of(events, Metric) if m.phase == "train"]
    assert [m.step for m in steps] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(m.values["loss"]) for m in steps)
    assert events[-1].values["tokens"] == 6 * 4 * 16
    assert Checkpoint.open(tmp_path / "run", latest=True).training_state()["cursor"]["sequences"] == 8 * 4
    monkeypatch.setattr(MLP, "forward", REAL)
    clean = [m for m in of(list(train(recipe(), out=tmp_path / "clean")), Metric) if m.phase == "train"]
    assert [m.values["lr"] for m in steps] == [m.values["lr"] for m in clean], "the schedule waits"


def test_a_bad_weight_is_named(recipe, tmp_path):
    list(train(recipe(), out=tmp_path / "first"))
    path = checkpoints(tmp_path / "first")[-1]
    run = train(recipe(patience=2), out=tmp_path / "run")
    model = None
    for event in run:
        if isinstance(event, Metric):
            model = run.gi_frame.f_locals["state"].model
            with torch.no_grad():
                model.blocks[0].learners[1].out.weight[0, 0] = math.nan
            break
    with pytest.raises(
        WorkError, match=r"the weight blocks\.0\.learners\.1\.out\.weight is not finite, 2 steps in a row"
    ):
        list(run)
    assert path.exists() and not checkpoints(tmp_path / "run"), "weights that are no numbers are not saved"


def test_after_patience_the_run_stops_with_the_last_good_weights(recipe, tmp_path, monkeypatch):
    poison(monkeypatch, set(range(5, 100)), "output")
    events = []
    with pytest.raises(WorkError, match=r"step 5: .* is not finite, 3 steps in a row") as failed:
        for event in train(recipe(patience=3, budget="50steps"), out=tmp_path / "run"):
            events.append(event)
    assert "last good weights are saved" in failed.value.hint
    assert len([n for n in of(events, Notice) if n.level == "warning"]) == 2
    assert [s.step for s in of(events, Saved)] == [4]
    opened = Checkpoint.open(tmp_path / "run")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in opened.tensors.values())
    assert opened.training_state()["cursor"]["sequences"] == 7 * 4, "going on begins after the bad batches"

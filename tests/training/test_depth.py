"""Runs of a model whose tokens choose their depth: resumed, begun from weights without a router, recomputed."""

from __future__ import annotations

import json
from threading import Event as Stop

import pytest
import torch

from synthe_core.errors import Interrupted
from synthe_core.events import Metric
from synthe_core.model.depth import depths
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training import train
from tests.training.conftest import assert_same

ROUTED = {"blocks": 3, "depth": {"min": 1, "target": 0.5, "hidden": 8}}


@pytest.mark.parametrize("settings", [{"carry": True}, {"ema": 0.9}], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(recipe, settings, tmp_path):
    config = recipe(model=ROUTED, **settings)
    list(train(config, out=tmp_path / "whole"))
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(config, out=tmp_path / "parts", stop=stop):
            if isinstance(event, Metric) and event.phase == "train" and event.step == 3:
                stop.set()
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_depth_is_trained_on_a_model_without_it(recipe, tmp_path):
    list(train(recipe(model={"blocks": 3}), out=tmp_path / "plain"))
    config = recipe(model=ROUTED, budget="12steps")
    list(train(config, out=tmp_path / "routed", init=tmp_path / "plain"))
    model = Checkpoint.open(tmp_path / "routed", latest=True).model()
    assert torch.isfinite(model.router.thresholds).all()
    deep = depths(model, torch.randint(0, model.vocab, (4, 16)))
    assert int(deep.min()) >= 1 and int(deep.max()) <= 3
    lines = [json.loads(line) for line in (tmp_path / "routed" / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["phase"] == "train"]
    assert train_lines[0]["depth"] == 1.0 and train_lines[0]["flops"] == train_lines[0]["flops_dense"]
    assert 0.3 < train_lines[-1]["depth"] < 0.7 and train_lines[-1]["flops"] < train_lines[-1]["flops_dense"]
    assert all("depth" in line for line in lines if line["phase"] == "validation")


def test_recomputing_activations_trains_the_same_model(recipe, tmp_path):
    for name, recompute in (("saved", False), ("recomputed", True)):
        list(train(recipe(model=ROUTED, runtime={"recompute": recompute}), out=tmp_path / name))
    one, other = (Checkpoint.open(tmp_path / name, latest=True).tensors for name in ("saved", "recomputed"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6, msg=name)

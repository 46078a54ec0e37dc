"""Every learner, between an embedding and a head, learns; and survives three times the recipes' learning rate."""

from __future__ import annotations

import argparse
import inspect
import math

import pytest
import torch

from synthe_core.layers import parse
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.recipe.schema import TrainSpec
from synthe_core.training import schedule
from synthe_core.training.optimizer import Optimizer
from tests.laws.entries import CAUSAL, FIRST, case_name

WIDTH, BATCH, TIME = 48, 8, 64
RECIPE_LR = 4e-3
each_learner = pytest.mark.parametrize("case", [case for case in FIRST if case in CAUSAL], ids=case_name)


def train(case, steps, lr, bfloat16=False):
    """Losses of `steps` steps on a module's source, byte by byte, and the model."""
    text = torch.tensor(list(inspect.getsource(argparse).encode()))
    torch.manual_seed(0)
    block = [parse(case), {"type": "mlp", "hidden": 64}]
    model = LanguageModel(ModelSpec.model_validate({"width": WIDTH, "blocks": 1, "block": block}), 256)
    spec = TrainSpec(lr=lr, schedule="wsd", warmup=0.02)
    optimizer = Optimizer(model, spec)
    losses = []
    for step in range(steps):
        starts = torch.randint(len(text) - TIME - 1, (BATCH, 1))
        window = text[starts + torch.arange(TIME + 1)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss, _ = model.loss(window[:, :-1], window[:, 1:])
        optimizer.zero_grad()
        loss.objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(schedule.rate(spec, step / steps))
        losses.append(float(loss.total.detach() / loss.scored))
    return losses, model


@each_learner
def test_it_learns(case):
    losses, _ = train(case, 40, RECIPE_LR)
    assert losses[0] > 5  # about ln 256
    assert sum(losses[-5:]) / 5 < 3.0


@pytest.mark.slow
@each_learner
def test_a_thousand_steps_at_three_times_the_rate_stay_finite(case):
    losses, model = train(case, 1000, 3 * RECIPE_LR, bfloat16=True)
    assert all(map(math.isfinite, losses))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert losses[-1] < losses[0]

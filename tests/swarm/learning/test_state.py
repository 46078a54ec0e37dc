"""What a learning process does at this moment, as other processes read it."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest

from synthe_core.events import Metric, Progress
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning import state
from synthe_core.swarm.learning.state import POINTS, LearningState, learning_now


@pytest.fixture
def folder(team: SwarmFolder, monkeypatch: pytest.MonkeyPatch) -> SwarmFolder:
    monkeypatch.setattr(state, "INTERVAL", -1.0)  # every event is written
    return team


def test_the_newest_figures_and_how_far_it_is(folder: SwarmFolder) -> None:
    now = LearningState(folder)
    now.begin("maths")
    now.show(Progress("train", 3.0, 10.0, "steps"))
    now.show(Metric(3, "train", {"loss": 0.5, "accuracy": 0.75, "memory": 1e9}))
    now.show(Metric(3, "validation", {"loss": 0.6, "accuracy": 0.5}))
    facts = learning_now(folder)
    assert facts is not None and (facts["pid"], facts["specialist"]) == (os.getpid(), "maths")
    assert (facts["doing"], facts["done"], facts["total"], facts["unit"]) == ("train", 3.0, 10.0, "steps")
    assert facts["train"] == {"step": 3, "loss": 0.5, "accuracy": 0.75}
    assert facts["validation"] == {"step": 3, "loss": 0.6, "accuracy": 0.5}
    assert facts["losses"] == [[3, 0.5]]
    now.begin("python")
    facts = learning_now(folder)
    assert facts is not None and facts.keys() == {"pid", "began", "specialist"}, "the next specialist begins anew"
    now.end()
    assert learning_now(folder) is None


@pytest.mark.parametrize("steps", [1, POINTS, POINTS + 1, 5 * POINTS + 7])
def test_a_long_curve_is_thinned_evenly(folder: SwarmFolder, steps: int) -> None:
    now = LearningState(folder)
    now.begin("maths")
    for step in range(1, steps + 1):
        now.show(Metric(step, "train", {"loss": float(step)}))
    facts = learning_now(folder)
    assert facts is not None
    curve = facts["losses"]
    assert min(steps, POINTS // 2) <= len(curve) <= POINTS
    assert all(step == loss for step, loss in curve)
    gaps = {after - before for (before, _), (after, _) in pairwise(curve)}
    assert len(gaps) <= 1 and steps - curve[-1][0] < max(gaps, default=1)

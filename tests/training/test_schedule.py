"""Learning rate and sequence length as functions of the fraction of the budget."""

from __future__ import annotations

import math

import pytest

from synthe_core.budget import Budget
from synthe_core.recipe.schema import TrainSpec
from synthe_core.training.schedule import rate
from synthe_core.training.stages import phase_at
from synthe_core.training.state import Clock, Counters


def spec(**train) -> TrainSpec:
    return TrainSpec.model_validate({"warmup": 0.1, "final": 0.2} | train)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_every_schedule_warms_up_peaks_and_ends_at_its_final(name):
    config = spec(schedule=name)
    assert rate(config, 0.0) == 0.01
    assert rate(config, 0.05) == pytest.approx(0.5)
    assert rate(config, 0.1) == pytest.approx(1.0)
    assert rate(config, 1.0) == pytest.approx(0.2)
    assert rate(config, 1.7) == pytest.approx(0.2)
    after = [rate(config, 0.1 + 0.9 * i / 50) for i in range(51)]
    assert after == sorted(after, reverse=True)


def test_their_shapes():
    assert rate(spec(schedule="linear"), 0.55) == pytest.approx(0.6)
    assert rate(spec(schedule="cosine"), 0.55) == pytest.approx(0.6)
    assert rate(spec(schedule="cosine"), 0.325) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert rate(spec(schedule="wsd", decay=0.4), 0.6) == pytest.approx(1.0)
    assert rate(spec(schedule="wsd", decay=0.4), 0.8) == pytest.approx(0.6)
    assert rate(spec(schedule="wsd", decay=1.0), 0.55) == pytest.approx(0.6)  # the fall begins after the warmup
    assert rate(spec(warmup=0), 0.0) == 1.0


def test_short_sequences_come_first_and_the_longest_last():
    config = spec(stages=[{"until": 0.2, "sequence": 64}, {"until": 0.5, "sequence": 128}])
    assert [phase_at(config, f, 256).sequence for f in (0, 0.19, 0.2, 0.49, 0.5, 1)] == [64, 64, 128, 128, 256, 256]


def test_counters_against_budgets():
    counters = Counters(steps=30, tokens=600, seconds=45.0)
    assert counters.fraction(Budget.parse("60steps")) == 0.5
    assert counters.fraction(Budget.parse("2400tokens")) == 0.25
    assert counters.fraction(Budget.parse("90s")) == pytest.approx(0.5, abs=0.01)
    assert counters.fraction(Budget.parse("90s"), reserve=30.0) == pytest.approx(0.75, abs=0.01)
    assert counters.fraction(Budget.parse("90s"), reserve=500.0) == 1.0
    assert counters.fraction(Budget.parse("60steps"), reserve=30.0) == 0.5
    assert counters._replace(epochs=1.5).fraction(Budget.parse("2epochs")) == 0.75
    earlier = Counters(steps=20, tokens=500, seconds=40.0)
    assert counters.reached(Budget.parse("10steps"), earlier) and not counters.reached(Budget.parse("11steps"), earlier)
    assert counters.reached(Budget.parse("4s"), earlier) and not counters.reached(Budget.parse("1m"), earlier)


def test_the_clock_adds_up_over_processes_and_runs_from_its_start():
    clock = Clock(before=45.0)
    assert clock.seconds == 45.0
    clock.start()
    assert clock.seconds == pytest.approx(45, abs=0.5) and clock.seconds > 45.0


def test_parts_start_late_and_are_trained_alone_at_first():
    stages = [
        {"until": 0.2, "sequence": 64, "without": ["multiscale_memory", "depth"]},
        {"until": 0.5, "without": ["multiscale_memory.tier3", "depth"], "warm": 0.1},
        {"until": 0.6, "without": ["multiscale_memory"], "warm": 0.1},
    ]
    config = spec(stages=stages)
    phases = {f: phase_at(config, f, 256) for f in (0, 0.19, 0.2, 0.219, 0.22, 0.5, 0.6, 0.69, 0.7, 1)}
    assert [p.stage for p in phases.values()] == [1, 1, 2, 2, 2, 3, 4, 4, 4, 4]
    assert phases[0.19] == (1, 64, {"multiscale_memory", "depth"}, set())
    assert phases[0.2] == phases[0.219] == (2, 256, {"multiscale_memory.tier3", "depth"}, {"multiscale_memory"})
    assert phases[0.22] == (2, 256, {"multiscale_memory.tier3", "depth"}, set())
    assert phases[0.5] == (
        3,
        256,
        {"multiscale_memory"},
        {"depth"},
    )  # tier3 has not joined: its learner is out
    assert phases[0.6] == phases[0.69] == (4, 256, set(), {"multiscale_memory"})
    assert phases[0.7] == phases[1] == (4, 256, set(), set())

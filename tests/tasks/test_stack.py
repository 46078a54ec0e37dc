"""The stack by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.tasks.stack import POP, Stack
from synthe_core.tasks.task import UNSCORED


def make(**settings):
    return Stack(Stack.Config(**settings))


def test_by_hand():
    inputs = np.array([[5, 3, POP, 7, POP, POP, 2, POP]])
    none = UNSCORED
    assert make().solve(inputs).tolist() == [[none, none, 3, none, 7, 5, none, 2]]


@pytest.mark.parametrize("settings", [{"length": 64}, {"depth": 1, "symbols": 2}, {"depth": 40, "length": 50}])
def test_depth_stays_within_its_bounds(settings):
    task = make(**settings)
    inputs, targets, slices = task.batch(300, RandomState(0))
    depth = np.cumsum(np.where(inputs == POP, -1, 1), axis=1)
    assert depth.min() >= 0 and depth.max() <= task.config.depth
    popped = inputs == POP
    assert np.array_equal(targets != UNSCORED, popped)
    assert np.array_equal(slices["depth"][popped], depth[popped] + 1)
    assert np.array_equal(task.solve(inputs), targets)
    assert popped.any(axis=1).all()


def test_ago_is_how_long_the_symbol_waited():
    inputs, _, slices = make(length=40).batch(50, RandomState(3))
    for row, tokens in enumerate(inputs.tolist()):
        pushed = []
        for place, token in enumerate(tokens):
            if token != POP:
                pushed.append(place)
                continue
            waited = place - pushed.pop()
            assert slices["ago"][row, place] <= waited < 2 * slices["ago"][row, place]


def test_pops_do_not_mostly_undo_the_last_push():
    inputs, targets, slices = make().batch(2000, RandomState(1))
    ago = slices["ago"][targets != UNSCORED]
    assert 0.2 < (ago == 1).mean() < 0.5  # a model that knows one token only gets these
    assert (ago >= 8).mean() > 0.1
    share = (inputs == POP).mean()
    assert 0.35 < share < 0.5


def test_symbols_are_equally_frequent():
    targets = make(length=64).batch(2000, RandomState(2)).targets
    counts = np.bincount(targets[targets != UNSCORED])[1:]
    assert len(counts) == 8
    assert np.abs(counts / counts.sum() - 1 / 8).max() < 0.01

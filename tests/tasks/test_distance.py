"""Tasks in which the distance to an earlier token matters."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.tasks import TASKS
from synthe_core.tasks.task import UNSCORED


def make(name: str, **settings):
    return TASKS[name](TASKS[name].Config(**settings))


@pytest.mark.parametrize("length", [64, 256, 2048])
def test_discourse_has_slices_of_distance_and_updates(length):
    task = make("discourse", length=length, facts=4, updates=3, questions=8)
    inputs, targets, slices = task.batch(60, RandomState(0))
    for row in range(60):
        stated: dict[tuple[int, int], list[int]] = {}
        queried = 0
        for start in range(0, length, 4):
            verb, entity, attribute, _ = inputs[row, start : start + 4]
            part = 4 * start // length
            if verb == 0:
                assert part == (1 if (entity, attribute) in stated else 0)
                stated.setdefault((entity, attribute), []).append(start + 3)
            if verb == 1:
                queried += 1
                assert part >= 2
                history, place = stated[entity, attribute], start + 2
                assert slices["updates"][row, place] == len(history) - 1
                distance, label = place - history[-1], slices["distance"][row, place]
                assert label <= distance < 2 * label
                assert targets[row, place] == inputs[row, history[-1]]
        assert queried == 8 == (targets[row] != UNSCORED).sum()
        assert len(stated) == 4 and sum(map(len, stated.values())) == 7


def test_updates_of_the_discourse_change_the_value():
    inputs, *_ = make("discourse", length=256, facts=1, updates=8, values=3).batch(200, RandomState(1))
    sentences = inputs.reshape(200, -1, 4)
    values = sentences[sentences[:, :, 0] == 0][:, 3].reshape(200, 9)
    assert (np.diff(values, axis=1) != 0).all()
    assert set(np.diff(values, axis=1).ravel().tolist()) == {-2, -1, 1, 2}


def test_a_longer_discourse_only_takes_longer():
    def labels(length: int) -> tuple[float, np.ndarray]:
        _, targets, slices = make("discourse", length=length).batch(500, RandomState(2))
        scored = targets != UNSCORED
        return np.log2(slices["distance"][scored]).mean(), np.bincount(slices["updates"][scored], minlength=9)

    (near, few), (far, many) = labels(256), labels(2048)
    assert far - near == pytest.approx(3, abs=0.1)  # eight times as far
    assert np.abs(few / few.sum() - many / many.sum()).max() < 0.04


def test_induction_queries_all_distances():
    inputs, targets, slices = make("induction", vocab=8, length=40).batch(4_000, RandomState(3))
    assert ((inputs == 7).sum(axis=1) == 2).all() and (inputs[:, -1] == 7).all()
    first = (inputs == 7).argmax(axis=1)
    assert np.abs(np.bincount(first, minlength=38) / 4_000 - 1 / 38).max() < 0.012
    assert first.max() == 37
    distance, label = 39 - first, slices["distance"][:, -1]
    assert ((label <= distance) & (distance < 2 * label)).all()
    assert (targets[:, -1] == inputs[np.arange(4_000), first + 1]).all()


def test_selective_copying_puts_data_anywhere():
    inputs, targets, _ = make("selective-copying", vocab=10, length=24, data=4).batch(4_000, RandomState(4))
    text = inputs[:, :20]
    assert ((text != 0).sum(axis=1) == 4).all() and (inputs[:, 20:] == 9).all() and text.max() == 8
    assert np.abs((text != 0).mean(axis=0) - 0.2).max() < 4 * np.sqrt(0.16 / 4_000)
    assert np.array_equal(text[text != 0].reshape(4_000, 4), targets[:, 20:])


def test_memory_copy_queries_every_name_at_most_once():
    inputs, targets, _ = make("memory-copy", pairs=26, digits=3, questions=5).batch(300, RandomState(5))
    queried = inputs[:, 26 * 7 + np.arange(5) * 16 + 8]
    assert all(len(set(row)) == 5 for row in queried.tolist())
    assert len(set(queried.ravel().tolist())) == 26
    assert ((targets != UNSCORED).sum(axis=1) == 15).all()

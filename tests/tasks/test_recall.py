"""MQAR and its kin against the public definition: where questions stand, what is bound, what filler is."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.tasks import TASKS
from synthe_core.tasks.task import UNSCORED


def make(name: str, **settings):
    return TASKS[name](TASKS[name].Config(**settings))


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """In standard deviations above its mean."""
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_the_first_keys_question_follows_the_power_law(power):
    """The public generator draws gaps with numpy's choice, without replacement, p ~ (g + 1)^(power - 1)."""
    rows, pairs, length = 20_000, 4, 64
    inputs, targets, _ = make("mqar", vocab=256, length=length, pairs=pairs, power=power).batch(rows, RandomState(0))
    value = targets == inputs[:, [1]]  # the value of the first key, queried once
    assert (value.sum(axis=1) == 1).all()
    gaps = (value.argmax(axis=1) - 2 * pairs) // 2
    p = np.arange(1, (length - 2 * pairs) // 2 + 1) ** (power - 1)
    counts = np.bincount(gaps, minlength=len(p))
    assert chi_square(counts, rows * p / p.sum()) < 4


def test_query_positions_follow_choice_without_replacement():
    rows, pairs, length = 6_000, 8, 40
    _, targets, _ = make("mqar", vocab=256, length=length, pairs=pairs).batch(rows, RandomState(1))
    taken = (targets[:, 2 * pairs :: 2] != UNSCORED).mean(axis=0)
    p = np.arange(1, len(taken) + 1) ** (0.01 - 1)
    reference = RandomState(2)
    chosen = np.zeros((rows, len(taken)))
    for row in chosen:
        row[reference.choice(len(taken), size=pairs, replace=False, p=p / p.sum())] = 1
    assert np.abs(taken - chosen.mean(axis=0)).max() < 4 * np.sqrt(2 * 0.25 / rows)


def test_keys_values_and_places_of_mqar():
    task = make("mqar", vocab=64, length=64, pairs=16)
    inputs, targets, _ = task.batch(500, RandomState(3))
    keys, values = inputs[:, 0:32:2], inputs[:, 1:32:2]
    assert keys.min() == 1 and keys.max() == 31 and values.min() == 32 and values.max() == 63
    for row in range(500):
        assert len(set(keys[row])) == len(set(values[row])) == 16
        queried = np.flatnonzero(targets[row] != UNSCORED)
        assert (queried >= 32).all() and (queried % 2 == 0).all()
        assert sorted(zip(inputs[row, queried], targets[row, queried], strict=True)) == sorted(
            zip(keys[row], values[row], strict=True)
        )


def test_values_are_balanced_at_every_slot():
    values = make("mqar", vocab=64, length=64, pairs=8).batch(20_000, RandomState(4)).inputs[:, 1:16:2]
    for slot in range(8):
        assert chi_square(np.bincount(values[:, slot], minlength=64)[32:], np.full(32, 20_000 / 32)) < 4


@pytest.mark.parametrize("name", ["mqar", "recall-overwrite", "forgetting", "compositional"])
def test_filler_is_the_whole_vocabulary_or_zeros(name):
    task = make(name, vocab=48, length=80, pairs=4)
    inputs, targets, _ = task.batch(5_000, RandomState(5))
    tail = inputs[:, -20:][(targets[:, -20:] == UNSCORED) & (targets[:, -19 - 2 : -1] == UNSCORED)]
    assert set(tail.tolist()) == set(range(48))
    inputs, targets, _ = make(name, vocab=48, length=80, pairs=4, random_non_queries=False).batch(50, RandomState(5))
    question = 2 if name == "compositional" else 1
    values = 3 * 4 if name == "compositional" else 2 * task.bindings
    assert ((inputs[:, values:] != 0).sum(axis=1) == 4 * question).all()
    assert ((targets != UNSCORED).sum(axis=1) == 4).all()


def test_overwriting_binds_in_random_order_and_counts_the_bindings():
    task = make("recall-overwrite", vocab=64, length=64, pairs=4, overwrites=8)
    inputs, targets, slices = task.batch(2_000, RandomState(6))
    keys, values = inputs[:, 0:24:2], inputs[:, 1:24:2]
    interleaved = 0
    for row in range(2_000):
        assert len(set(keys[row])) == 4 and len(set(values[row])) == 12
        interleaved += len(set(keys[row, :4])) < 4
        for place in np.flatnonzero(targets[row] != UNSCORED):
            bound = np.flatnonzero(keys[row] == inputs[row, place])
            assert slices["times"][row, place] == len(bound) - 1
            assert slices["overwritten"][row, place] == (len(bound) > 1)
            assert targets[row, place] == values[row, bound[-1]]
    assert interleaved > 1_500  # a new binding of an old key comes before all keys were seen once
    # 8 more bindings over 4 keys: binomial, mean 2
    times = slices["times"][targets != UNSCORED]
    binomial = np.array([1, 8, 28, 56, 70, 56, 28, 8, 1]) * 0.25 ** np.arange(9) * 0.75 ** np.arange(8, -1, -1)
    assert np.abs(np.bincount(times, minlength=9) / len(times) - binomial).max() < 0.02


def test_forgetting_updates_different_keys_to_other_values():
    task = make("forgetting", vocab=40, length=64, pairs=6, updates=4)
    inputs, targets, slices = task.batch(2_000, RandomState(7))
    updated = np.zeros(6)
    for row in inputs[:, :20].tolist():
        first, second = dict(zip(row[0:12:2], row[1:12:2], strict=True)), list(zip(row[12::2], row[13::2], strict=True))
        assert len(first) == 6 and len(dict(second)) == 4
        assert all(key in first and first[key] != value for key, value in second)
        updated[[list(first).index(key) for key, _ in second]] += 1
    assert np.abs(updated / 2_000 - 4 / 6).max() < 4 * np.sqrt(2 / 9 / 2_000)
    assert slices["overwritten"][targets != UNSCORED].mean() == pytest.approx(4 / 6)
    for row in range(50):
        for place in np.flatnonzero(targets[row] != UNSCORED):
            assert slices["overwritten"][row, place] == (inputs[row, place] in inputs[row, 12:20:2])


def test_compositional_keys_are_a_grid_where_neither_half_determines_the_value():
    task = make("compositional", vocab=60, length=64, pairs=9)
    inputs, targets, _ = task.batch(300, RandomState(8))
    one, two, values = (inputs[:, i:27:3] for i in range(3))
    assert one.min() >= 1 and one.max() < 20 <= two.min() and two.max() < 40 <= values.min()
    for row in range(300):
        cells = list(zip(one[row], two[row], strict=True))
        assert set(cells) == {(a, b) for a in set(one[row]) for b in set(two[row])}
        assert len(cells) == 9 == len(set(cells)) == len(set(values[row])) and len(set(one[row])) == 3
    assert len({tuple(np.argsort(np.argsort(row))) for row in (one * 100 + two).tolist()}) > 200, "in random order"
    assert ((targets != UNSCORED).sum(axis=1) == 9).all()


def test_stacked_passes_show_the_same_pairs_in_other_orders():
    task = make("mqar-stacked", keys=20, values=12, pairs=6, passes=3)
    inputs, targets, _ = task.batch(400, RandomState(9))
    first, second, third, queried = np.split(inputs, 4, axis=1)
    assert (np.sort(first) == np.sort(second)).all() and (np.sort(first) == np.sort(third)).all()
    assert (first != second).any(axis=1).mean() > 0.98
    keys, values = np.divmod(first - 32, 12)
    assert (np.sort(keys) == np.sort(queried)).all()
    assert (np.sort(20 + values) == np.sort(targets[:, 18:])).all()
    assert all(len(set(row)) == 6 for row in (*keys.tolist(), *values.tolist()))

"""The word problem by hand, and that what we call groups are groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.errors import InputError
from synthe_core.tasks.groups import group
from synthe_core.tasks.parity import Parity
from synthe_core.tasks.state_tracking import StateTracking
from synthe_core.tasks.task import UNSCORED

ORDERS = {"Z2": 2, "Z7": 7, "Z60": 60, "Z120": 120, "S3": 6, "S4": 24, "S5": 120, "A3": 3, "A4": 12, "A5": 60}


def make(**settings):
    return StateTracking(StateTracking.Config(**settings))


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_group_axioms(name, order):
    table = group(name).table
    assert group(name).order == order and table.shape == (order, order)
    everyone = np.arange(order)
    assert np.array_equal(table[0], everyone) and np.array_equal(table[:, 0], everyone)  # 0 is the identity
    assert np.array_equal(np.sort(table, axis=1), np.tile(everyone, (order, 1)))  # so each element has an inverse
    assert np.array_equal(np.sort(table, axis=0), np.tile(everyone, (order, 1)).T)
    for i in range(order):  # (i·j)·k = i·(j·k)
        assert np.array_equal(table[table[i]], table[i][table])


@pytest.mark.parametrize("name", ORDERS)
def test_the_table_is_that_of_the_permutations(name):
    elements = group(name)
    rng = RandomState(0)
    for i, j in rng.randint(elements.order, size=(200, 2)):
        product = [elements.permutations[i][point] for point in elements.permutations[j]]
        assert elements.permutations[elements.table[i, j]].tolist() == product


def test_cyclic_groups_add():
    assert group("Z60").table[17, 50] == 7
    numbers = np.arange(60)
    assert np.array_equal(group("Z60").table, (numbers[:, None] + numbers) % 60)


def test_alternating_groups_are_the_even_permutations():
    def sign(permutation):
        return round(np.linalg.det(np.eye(len(permutation))[permutation]))

    for points in (3, 4, 5):
        even = [p for p in itertools.permutations(range(points)) if sign(list(p)) == 1]
        assert [tuple(p) for p in group(f"A{points}").permutations.tolist()] == even


def commutators(table, members):
    """The subgroup that all i·j·i⁻¹·j⁻¹ of `members` generate."""
    inverse = (table == 0).argmax(1)
    elements = {0} | {table[table[i, j], table[inverse[i], inverse[j]]] for i in members for j in members}
    while len(grown := elements | {table[i, j] for i in elements for j in elements}) > len(elements):
        elements = grown
    return elements


def derived(name):
    """The sizes of the derived series, until it stands still."""
    table, members, sizes = group(name).table, set(range(group(name).order)), []
    while not sizes or len(members) != sizes[-1]:
        sizes.append(len(members))
        members = commutators(table, members)
    return sizes


def test_s4_is_solvable_and_a5_and_s5_are_not():
    assert derived("Z60") == [60, 1]
    assert derived("S3") == [6, 3, 1]
    assert derived("S4") == [24, 12, 4, 1]
    assert derived("A5") == [60]
    assert derived("S5") == [120, 60]


def test_by_hand():
    assert make(group="Z7").solve(np.array([[3, 5, 6, 1]])).tolist() == [[3, 1, 0, 1]]
    # S3 in lexical order: 0 = 012, 1 = 021, 2 = 102, 3 = 120, 4 = 201, 5 = 210.
    # Swap the last two after swapping the first two: 0 → 1 → 2, 1 → 0, 2 → 1: that is 201. The other order is 120.
    assert make().solve(np.array([[1, 2], [2, 1]])).tolist() == [[1, 4], [2, 3]]
    assert make().solve(np.array([[3, 3, 3], [5, 5, 4]])).tolist() == [[3, 4, 0], [5, 0, 4]]


@pytest.mark.parametrize("name", ["Z60", "S3", "A5", "S5"])
def test_solver_and_balance(name):
    task = make(group=name, length=20)
    inputs, targets, _ = task.batch(2000, RandomState(2))
    assert np.array_equal(task.solve(inputs[:50]), targets[:50])
    counts = np.bincount(targets[:, -1], minlength=task.vocab)
    expected = 2000 / task.vocab
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - (task.vocab - 1)) < 4.5 * (2 * (task.vocab - 1)) ** 0.5


def test_a_start_token_stands_first_and_is_not_scored():
    with_start, without = (make(group="A5", length=9, start=start).batch(30, RandomState(4)) for start in (True, False))
    for elements, plain, first in zip(with_start[:2], without[:2], (60, UNSCORED), strict=True):
        assert np.array_equal(elements[:, 1:], plain) and (elements[:, 0] == first).all()
    assert np.array_equal(with_start.slices["position"][:, 1:], without.slices["position"])
    task = make(group="A5", length=9, start=True)
    assert np.array_equal(task.solve(with_start.inputs), with_start.targets) and task.vocab == 61


@pytest.mark.parametrize("name,count", [("S3", 3), ("S4", 6), ("S5", 10)])
def test_swaps_are_reflections_and_generate_the_group(name, count):
    task = make(group=name, elements="swaps", length=40)
    inputs, targets, _ = task.batch(300, RandomState(3))
    assert np.array_equal(task.solve(inputs), targets)
    assert len(np.unique(inputs)) == len(task.drawn) == count
    for swap in task.drawn:
        assert task.group.table[swap, swap] == 0
        assert np.linalg.matrix_rank(np.eye(int(name[1]))[task.group.permutations[swap]] - np.eye(int(name[1]))) == 1
    assert len(np.unique(targets)) == task.group.order
    even = set(group(f"A{name[1]}").numbers)
    assert {task.group.permutations[t].tobytes() in even for t in targets[:, 39]} == {True}  # forty swaps
    assert task.chance == pytest.approx(2 / task.group.order)


@pytest.mark.parametrize(("name", "counts"), [("S5", [1, 10, 35, 50, 24]), ("A5", [1, 12, 32, 15]), ("Z12", [1] * 12)])
def test_generators_are_a_class_and_steps_count_them(name, counts):
    elements = group(name)
    few = elements.generators().tolist()
    inverse = {i: next(j for j in range(elements.order) if elements.table[i, j] == 0) for i in range(elements.order)}
    assert {elements.table[elements.table[x, few[0]], inverse[x]] for x in range(elements.order)} == set(few)
    steps = elements.steps(np.array(few))
    assert np.bincount(steps).tolist() == counts
    reached = {0}
    for step in range(1, len(counts)):
        reached = {elements.table[i, j] for i in reached for j in few}
        assert set(np.flatnonzero(steps == step)) <= reached
    if name == "S5":  # as many swaps as points, less one for every cycle
        assert {len(elements.permutations[i]) - cycles(elements.permutations[i]) - steps[i] for i in range(120)} == {0}


def cycles(permutation):
    """How many cycles a permutation has, fixed points counted."""
    left, count = set(range(len(permutation))), 0
    while left:
        count, point = count + 1, min(left)
        while point in left:
            left.remove(point)
            point = permutation[point]
    return count


def test_steps_mark_elements_that_are_not_reached():
    even = [i for i in range(6) if i not in group("S3").generators()]
    assert group("S3").steps(np.array(even)).tolist() == [0 if i == 0 else 1 if i in even else -1 for i in range(6)]


@pytest.mark.parametrize(("name", "first"), [("S5", 10), ("A5", 12), ("Z60", 1)])
def test_elements_join_the_near_ones_first(name, first):
    task = make(group=name, grow=True, length=12)
    order, steps, before = group(name).order, task.group.steps(task.first), set()
    for level in range(task.levels + 1):
        inputs, targets, _ = task.at_level(level).batch(500, RandomState(1))
        assert np.array_equal(task.solve(inputs), targets)
        drawn = set(inputs.flat)
        assert len(drawn) == first + (order - first) * level // task.levels
        assert before <= drawn
        joined, waiting = steps[list(drawn - set(task.first))], steps[list(set(range(order)) - drawn)]
        assert not len(joined) or not len(waiting) or joined.max() <= waiting.min()
        before = drawn
    assert drawn == set(range(order))
    plain = make(group=name, length=12)
    assert plain.levels == 0 and set(plain.at_level(0).batch(500, RandomState(1)).inputs.flat) == set(range(order))


def test_growing_ends_with_all():
    with pytest.raises(InputError, match="ends with all elements"):
        make(group="S5", elements="swaps", grow=True)


@pytest.mark.parametrize("name", ["A4", "A5", "Z2", "Z60"])
def test_groups_without_swaps_are_refused(name):
    with pytest.raises(InputError, match="swaps two points"):
        make(group=name, elements="swaps")


def test_over_z2_it_is_parity():
    parity = Parity(Parity.Config(length=21)).batch(9, RandomState(4))
    tracked = make(group="Z2", length=21).batch(9, RandomState(4))
    assert np.array_equal(parity.inputs, tracked.inputs) and np.array_equal(parity.targets, tracked.targets)


@pytest.mark.parametrize("name", ["", "Z1", "Z121", "S2", "S6", "A6", "D4", "s3", "S-3", "Z2x"])
def test_an_unknown_group_is_refused_with_the_valid_names(name):
    with pytest.raises(InputError, match="unknown group") as caught:
        make(group=name)
    assert caught.value.hint == "known: Z2 … Z120, S3 … S5, A3 … A5"

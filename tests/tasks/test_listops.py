"""ListOps by hand."""

from __future__ import annotations

import ast

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.errors import InputError
from synthe_core.tasks.listops import ListOps
from synthe_core.tasks.task import UNSCORED

NAMES = [*map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]"]


def make(**settings):
    return ListOps(ListOps.Config(**settings))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MIN 4 7 ]", 4),
        ("[SM 8 7 6 ]", 1),
        ("[MED 1 9 3 ]", 3),
        ("[MED 1 2 8 9 ]", 5),
        ("[MED 1 2 ]", 1),
        ("[SM [MED 5 1 7 ] [MAX 0 0 ] [MIN 9 [SM 6 6 ] ] ]", 7),
    ],
)
def test_by_hand(expression, value):
    inputs = np.array([[NAMES.index(word) for word in expression.split()]])
    targets = make().solve(inputs)[0].tolist()
    assert targets == [UNSCORED] * (len(targets) - 1) + [value]


def nested(row):
    """A row as Python's nested lists, the operator's name first."""
    words = [NAMES[token] for token in row]
    return ast.literal_eval("".join(f"['{w[1:]}'," if w[0] == "[" else f"{w}," for w in words))[0]


def value_and_shape(tree, level=1):
    """The value of nested lists, how deep they are, and the longest list."""
    if not isinstance(tree, list):
        return tree, level - 1, 0
    values, depths, most = zip(*(value_and_shape(child, level + 1) for child in tree[1:]), strict=True)
    name, median = tree[0], int(np.median(values))
    value = {"MIN": min(values), "MAX": max(values), "MED": median, "SM": sum(values) % 10}[name]
    return value, max(depths), max(len(values), *most)


@pytest.mark.parametrize(
    "settings", [{}, {"length": 46, "depth": 4, "arguments": 4}, {"length": 4, "depth": 1}, {"length": 200, "depth": 7}]
)
def test_every_sequence_is_one_tree_within_its_bounds(settings):
    task = make(**settings)
    inputs, targets, slices = task.batch(60, RandomState(0))
    for row in range(60):
        value, depth, most = value_and_shape(nested(inputs[row]))
        assert value == targets[row, -1]
        assert depth == slices["depth"][row, -1] <= task.config.depth
        assert most <= task.config.arguments
    assert (targets[:, :-1] == UNSCORED).all()


@pytest.mark.parametrize("length", range(4, 23))
def test_every_length_from_4_on_can_be_filled(length):
    task = make(length=length, depth=3, arguments=4)
    inputs, targets, _ = task.batch(40, RandomState(length))
    assert np.array_equal(task.solve(inputs), targets)


def test_operators_digits_and_answers_are_spread():
    inputs, targets, slices = make().batch(3000, RandomState(1))
    counts = np.bincount(inputs.ravel())
    operators, digits = counts[10:14], counts[:10]
    assert operators.max() < 1.1 * operators.min() and digits.max() < 1.1 * digits.min()
    answers = np.bincount(targets[:, -1]) / 3000
    assert len(answers) == 10 and answers.min() > 0.05 and answers.max() < 0.2
    assert set(np.sort(answers.argsort()[-2:]).tolist()) == {0, 9}
    assert len(np.unique(slices["depth"][:, -1])) >= 4


def test_too_long_for_its_depth_names_the_smallest_that_fits():
    assert make(length=94, depth=5)
    with pytest.raises(InputError, match="5 deep may not fill 95 tokens") as caught:
        make(length=95, depth=5)
    assert caught.value.hint == "the smallest depth that fits is 6"
    for length in range(5, 400):
        try:
            make(length=length, depth=1)
        except InputError as error:
            smallest = int(error.hint.rsplit(" ", 1)[1])
            assert make(length=length, depth=smallest)
            if smallest > 1:
                with pytest.raises(InputError):
                    make(length=length, depth=smallest - 1)

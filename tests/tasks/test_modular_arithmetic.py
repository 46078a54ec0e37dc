"""Modular arithmetic by hand, and against Python's own parser."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.errors import InputError
from synthe_core.tasks.modular_arithmetic import ModularArithmetic
from synthe_core.tasks.task import UNSCORED


def make(**settings):
    return ModularArithmetic(ModularArithmetic.Config(**settings))


def tokens(text, modulus=5):
    signs = [*map(str, range(modulus)), "=", "+", "-", "*", "(", ")"]
    return np.array([[signs.index(word) for word in text.split()]])


def text(row, modulus=5):
    return " ".join([*map(str, range(modulus)), "=", "+", "-", "*", "(", ")"][token] for token in row)


BY_HAND = [
    ("3 + 2 * 4 - 1 =", 0),
    ("4 * 3 * 2 - 4 - 4 =", 1),
    ("0 - 1 =", 4),
    ("2 =", 2),
    ("( 3 + 2 ) * 4 - 1 =", 4),
    ("2 * ( 1 - ( 4 - 2 ) * 3 ) + 1 =", 1),
    ("( ( 3 ) ) =", 3),
]


@pytest.mark.parametrize(("expression", "value"), BY_HAND)
def test_by_hand(expression, value):
    task = make(brackets=3)
    assert task.solve(tokens(expression))[0, -1] == value
    assert task._values(tokens(expression))[0, -1] == value


def test_values_are_targets_wherever_the_text_is_an_expression():
    none = UNSCORED
    values = make(brackets=1).solve(tokens("3 + 2 * 4 - 1 =")).tolist()
    assert values == [[3, none, 0, none, 1, none, 0, 0]]
    values = make(brackets=1).solve(tokens("2 * ( 1 - 4 ) - 3 =")).tolist()
    assert values == [[2, none, none, none, none, none, 4, none, 1, 1]]


@pytest.mark.parametrize("settings", [{}, {"modulus": 7, "length": 50}, {"brackets": 1}, {"brackets": 6, "length": 48}])
def test_pythons_parser_agrees(settings):
    task = make(**settings)
    modulus = task.config.modulus
    inputs, targets, _ = task.batch(40, RandomState(0))
    for row, answers in zip(inputs.tolist(), targets.tolist(), strict=True):
        for place, answer in enumerate(answers):
            read = text(row[: place + 1], modulus).removesuffix("=")
            try:
                value = eval(compile(read, "", "eval")) % modulus
            except SyntaxError:
                value = UNSCORED
            assert value == answer, read


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_brackets_nest_as_deep_as_they_may(depth):
    task = make(brackets=depth, length=40)
    inputs, _, _ = task.batch(500, RandomState(1))
    opened = np.cumsum((inputs == 5 + 4).astype(int) - (inputs == 5 + 5), axis=1)
    assert opened.min() == 0 and opened.max() == depth
    assert (opened[:, -1] == 0).all() and (inputs[:, -1] == 5).all()
    assert task.vocab == (11 if depth else 9)


def test_the_target_at_the_end_is_the_last_of_always():
    always, end = (make(scored=scored).batch(30, RandomState(2)) for scored in ("always", "end"))
    assert np.array_equal(always.inputs, end.inputs)
    assert np.array_equal(always.targets[:, -1], end.targets[:, -1])
    assert (end.targets[:, :-1] == UNSCORED).all()


def test_values_are_nearly_uniform_and_zero_is_the_most_frequent():
    targets = make().batch(8000, RandomState(3)).targets
    shares = np.bincount(targets[targets != UNSCORED])
    shares = shares / shares.sum()
    assert shares.argmax() == 0 and 0.19 < shares.min() < shares.max() < 0.22


def exact_chance(modulus, numbers):
    """The share of zeros: the law of (sum, factor) before every number, carried on exactly."""
    law, zeros = {(0, 1): 1.0}, 0.0
    for t in range(numbers):
        later = {}
        here = 0.0
        for (total, factor), p in law.items():
            for number in range(modulus):
                value = (total + factor * number) % modulus
                here += p / modulus * (value == 0)
                product = factor * number % modulus
                for state in ((value, 1), (value, modulus - 1), (total, product)):
                    later[state] = later.get(state, 0.0) + p / modulus / 3
        zeros += here * (2 if t == numbers - 1 else 1)  # the last is queried again at the =
        law = later
    return zeros / (numbers + 1)


@pytest.mark.parametrize(("modulus", "length"), [(5, 32), (3, 8), (6, 20)])
def test_the_measured_chance_equals_the_computed_one(modulus, length):
    assert make(modulus=modulus, length=length).chance == pytest.approx(exact_chance(modulus, length // 2), abs=5e-3)


def test_an_odd_length_is_refused_with_the_next_even_one():
    with pytest.raises(InputError, match="modular-arithmetic: length must be even, not 33") as caught:
        make(length=33)
    assert caught.value.hint == "the next that fits is 34"

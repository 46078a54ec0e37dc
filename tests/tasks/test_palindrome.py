"""Palindromes by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.errors import InputError
from synthe_core.tasks.palindrome import Palindrome
from synthe_core.tasks.task import UNSCORED


def make(**settings):
    return Palindrome(Palindrome.Config(**settings))


MARK, END, NO, YES = 16, 17, 18, 19


def test_by_hand():
    inputs = np.array([[3, 1, 4, MARK, 4, 1, 3, END]])
    targets = [[UNSCORED, UNSCORED, UNSCORED, 4, 1, 3, UNSCORED, UNSCORED]]
    assert make(length=8).solve(inputs).tolist() == targets


def test_verdicts_by_hand():
    task = make(length=6, target="verdict")
    inputs = np.array([[3, 1, MARK, 1, 3, END], [3, 1, MARK, 1, 2, END], [3, 1, MARK, 3, 1, END]])
    assert task.solve(inputs)[:, -1].tolist() == [YES, NO, NO]
    assert (task.solve(inputs)[:, :-1] == UNSCORED).all()
    assert task.vocab == 20


def test_every_sequence_is_a_palindrome_around_its_separator():
    inputs, targets, slices = make(length=20).batch(200, RandomState(0))
    assert (inputs[:, 9] == MARK).all() and (inputs[:, -1] == END).all()
    assert np.array_equal(inputs[:, :9], inputs[:, 10:-1][:, ::-1])
    assert np.array_equal(targets[:, 9:-2], inputs[:, 10:-1])  # the target is the next token
    assert slices["ago"][0].tolist() == [UNSCORED] * 9 + [1, 2, 4, 4, 8, 8, 8, 8, 16] + [UNSCORED] * 2


def test_half_of_the_verdicts_are_yes_and_a_no_is_one_token_off():
    task = make(length=20, target="verdict")
    inputs, targets, _ = task.batch(2000, RandomState(1))
    wrong = (inputs[:, :9] != inputs[:, 10:-1][:, ::-1]).sum(1)
    assert np.array_equal(targets[:, -1], np.where(wrong, NO, YES))
    assert set(wrong.tolist()) == {0, 1}
    assert abs(wrong.mean() - 0.5) < 4.5 * 0.5 / 2000**0.5
    places = (inputs[:, :9] != inputs[:, 10:-1][:, ::-1]).sum(0)
    assert places.min() > 60  # of about 111 each
    assert np.array_equal(task.solve(inputs), targets)


@pytest.mark.parametrize("target", ["tokens", "verdict"])
def test_the_shortest(target):
    task = make(length=4, target=target)
    inputs, targets, _ = task.batch(30, RandomState(2))
    assert np.array_equal(task.solve(inputs), targets)


def test_an_odd_length_is_refused_with_the_next_even_one():
    with pytest.raises(InputError, match="palindrome: length must be even, not 33") as caught:
        make(length=33)
    assert caught.value.hint == "the next that fits is 34"

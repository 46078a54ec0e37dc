"""Random draws for several tasks, for all rows at once."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from synthe_core.tasks.task import UNSCORED, Integers


def integers(rng: RandomState, low: int, high: int, shape: tuple[int, ...]) -> Integers:
    """Uniform integers of [low, high); 64 bits wide on every system, so that the stream is the same."""
    return rng.randint(low, high, size=shape, dtype=np.int64)


def smallest(noise: np.ndarray, count: int) -> Integers:
    """The indices of the `count` smallest of each row, the smallest first: [rows, count]."""
    indices = np.argpartition(noise, count - 1, axis=1)[:, :count]  # its order differs from one NumPy to another
    order = np.argsort(np.take_along_axis(noise, indices, axis=1), axis=1)
    return np.take_along_axis(indices, order, axis=1)


def distinct(rng: RandomState, rows: int, low: int, high: int, count: int) -> Integers:
    """`count` different integers of [low, high) for each of `rows`, in random order: [rows, count]."""
    if count * count > 2 * (high - low):
        return low + smallest(rng.random_sample((rows, high - low)), count)
    drawn = integers(rng, low, high, (rows, count))  # most rows are distinct; the others are drawn again
    while (clash := (np.diff(np.sort(drawn, axis=1), axis=1) == 0).any(axis=1)).any():
        drawn[clash] = integers(rng, low, high, (int(clash.sum()), count))
    return drawn


def weighted(rng: RandomState, rows: int, weights: np.ndarray, count: int) -> Integers:
    """`count` different indices of `weights` for each row, drawn one after another in proportion to the weights left.

    Those with the largest log w + Gumbel noise are such a draw (Vieira 2014; Efraimidis & Spirakis 2006).
    """
    noise = -np.log(-np.log(np.maximum(rng.random_sample((rows, len(weights))), 1e-300)))
    return smallest(-(np.log(weights) + noise), count)


def digits(rng: RandomState, shape: tuple[int, ...], count: int) -> Integers:
    """The `count` decimal digits of random numbers without a leading zero: [*shape, count]."""
    return np.concatenate([integers(rng, 1, 10, (*shape, 1)), integers(rng, 0, 10, (*shape, count - 1))], axis=-1)


def digits_chance(count: int) -> float:
    """The accuracy of the best guess of those digits: 1/9 for the first, 1/10 for the others."""
    return (1 / 9 + (count - 1) / 10) / count


def marked(length: int, places: Integers, values: Integers) -> Integers:
    """[rows, length] with `values` [rows, P] at `places` [rows, P], UNSCORED everywhere else."""
    row = np.full((len(places), length), UNSCORED, dtype=np.int64)
    np.put_along_axis(row, places, values, axis=1)
    return row


def octave(distance: Integers) -> Integers:
    """The largest power of two that is not above each (positive) distance: the label of its slice."""
    return np.left_shift(1, np.frexp(distance)[1].astype(np.int64) - 1)

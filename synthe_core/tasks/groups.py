"""Finite groups, computed from permutations."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from synthe_core.errors import InputError
from synthe_core.tasks.task import Integers

KNOWN = {"Z": (2, 120), "S": (3, 5), "A": (3, 5)}  # the smallest and largest of each family


class Group(NamedTuple):
    """permutations [n, K]: element i moves point x to permutations[i, x], in lexical order, so that 0 is the identity;
    table [n, n]: the number of the product i·j, which moves a point by j first and by i then."""

    permutations: Integers
    table: Integers
    numbers: dict[bytes, int]

    @property
    def order(self) -> int:
        return len(self.table)

    def number(self, permutations: Integers) -> Integers:
        """The numbers [N] of permutations [N, K]."""
        return np.array([self.numbers[p.tobytes()] for p in np.ascontiguousarray(permutations)], dtype=np.int64)

    def steps(self, elements: Integers) -> Integers:
        """How many of `elements` it takes at least to make each element, int64 [n]; -1 where no number of them does."""
        taken = np.full(self.order, -1)
        taken[0], reached = 0, np.zeros(1, dtype=np.int64)
        while len(reached):
            products = np.unique(self.table[np.ix_(reached, elements)])
            reached, step = products[taken[products] < 0], taken[reached[0]] + 1
            taken[reached] = step
        return taken

    def generators(self) -> Integers:
        """The smallest conjugacy class {x·g·x⁻¹ for every x} that generates the group, of equal ones that with the
        least element: the swaps of Sn, half of the 5-cycles of A5, 1 in Zn."""
        inverse = (self.table == 0).argmax(1)
        least = self.table[self.table, inverse[:, None]].min(0)  # [x, g]: x·g·x⁻¹
        classes = sorted((np.flatnonzero(least == g) for g in np.unique(least)), key=len)
        return next(each for each in classes if self.steps(each).min() >= 0)


@lru_cache
def group(name: str) -> Group:
    """Zn, the rotations of n points; Sk, all permutations of k points; Ak, the even ones among them."""
    match = re.fullmatch(r"([ZSA])([0-9]{1,3})", name)
    family, points = (match[1], int(match[2])) if match else ("", 0)
    low, high = KNOWN.get(family, (1, 0))
    if not low <= points <= high:
        known = ", ".join(f"{letter}{first} … {letter}{last}" for letter, (first, last) in KNOWN.items())
        raise InputError(f"unknown group '{name}'", f"known: {known}")
    moved: Any = itertools.permutations(range(points))
    if family == "Z":
        moved = [[(point + turn) % points for point in range(points)] for turn in range(points)]
    permutations = np.array(list(moved), dtype=np.int64)
    if family == "A":
        pairs = np.triu(np.ones((points, points), dtype=bool), 1)
        inversions = ((permutations[:, :, None] > permutations[:, None, :]) & pairs).sum((1, 2))
        permutations = permutations[inversions % 2 == 0]
    numbers = {p.tobytes(): i for i, p in enumerate(permutations)}
    products = permutations[:, permutations].reshape(-1, points)  # [i, j, x]: i's image of j's image of x
    table = np.array([numbers[p.tobytes()] for p in products], dtype=np.int64)
    return Group(permutations, table.reshape(len(permutations), -1), numbers)

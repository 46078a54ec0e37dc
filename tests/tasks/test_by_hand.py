"""Sequences and answers written by hand, one or two for each task, and small ones listed in full."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.tasks import TASKS
from synthe_core.tasks.memory_copy import ALPHABET
from synthe_core.tasks.task import UNSCORED

X = UNSCORED


def spelled(text: str) -> list[int]:
    return [ALPHABET.index(character) for character in text]


def answers(text: str, encode, *queried: tuple[int, str]) -> tuple[list[int], list[int]]:
    """The tokens of `text`, and its targets: each of `queried` is (place, the text that follows it)."""
    targets = [X] * len(text)
    for place, answer in queried:
        targets[place : place + len(answer)] = encode(answer)
    return list(encode(text)), targets


NUMBERS = "a=10, q=27. What is q? 27. What is a? 1"
KEY = "A tree. The pass key is 4071. A wall.\nWhat is the pass key? 407"
FACTS = (
    "The word of the magnet is ab. So. The word of the button is cd. Yes.\nWhat is the word of the magnet? a",
    "The word of the magnet is ab. So. The word of the button is cd. Yes.\nWhat is the word of the button? c",
)

CASES = [
    ("mqar", {"vocab": 8, "length": 10, "pairs": 2}, [3, 6, 1, 4, 7, 5, 1, 0, 3, 3], [X, X, X, X, X, X, 4, X, 6, X]),
    (
        "mqar-stacked",  # keys 0 1 2, values 3 4, and pair (k, v) = 5 + 2k + v
        {"keys": 3, "values": 2, "pairs": 2, "passes": 2},
        [9, 6, 6, 9, 0, 2],
        [X, X, X, X, 4, 3],
    ),
    (
        "recall-overwrite",
        {"vocab": 12, "length": 14, "pairs": 2, "overwrites": 2},
        [1, 7, 2, 6, 1, 9, 1, 11, 1, 0, 0, 0, 2, 0],
        [X, X, X, X, X, X, X, X, 11, X, X, X, 6, X],
    ),
    (
        "forgetting",
        {"vocab": 12, "length": 16, "pairs": 3, "updates": 1},
        [1, 7, 2, 6, 5, 8, 2, 10, 2, 0, 5, 0, 1, 0, 0, 0],
        [X, X, X, X, X, X, X, X, 10, X, 8, X, 7, X, X, X],
    ),
    (
        "compositional",
        {"vocab": 12, "length": 24, "pairs": 4},
        [1, 5, 8, 1, 4, 9, 3, 4, 10, 3, 5, 11, 3, 4, 0, 1, 4, 0, 3, 5, 0, 1, 5, 0],
        [*[X] * 13, 10, X, X, 9, X, X, 11, X, X, 8, X],
    ),
    ("copying", {"vocab": 9, "length": 8}, [4, 8, 4, 1, 0, 4, 8, 4], [X, X, X, X, 4, 8, 4, 1]),
    (
        "selective-copying",
        {"vocab": 9, "length": 9, "data": 3},
        [0, 7, 1, 0, 0, 7, 8, 8, 8],
        [X, X, X, X, X, X, 7, 1, 7],
    ),
    ("induction", {"vocab": 5, "length": 7}, [3, 0, 4, 2, 2, 0, 4], [X, X, X, X, X, X, 2]),
    ("memory-copy", {"pairs": 2}, *answers(NUMBERS, spelled, (22, "27"), (37, "10"))),
    ("passkey", {"length": len(KEY), "digits": 4}, *answers(KEY, str.encode, (len(KEY) - 4, "4071"))),
    ("needle", {"length": len(FACTS[0]), "letters": 2}, *answers(FACTS[0], str.encode, (len(FACTS[0]) - 2, "ab"))),
    ("needle", {"length": len(FACTS[1]), "letters": 2}, *answers(FACTS[1], str.encode, (len(FACTS[1]) - 2, "cd"))),
    (
        "discourse",  # SAY 0, ASK 1, blank 2, word 3, entities 4 5, attribute 6, values 7 8 9
        {
            "facts": 2,
            "updates": 1,
            "questions": 3,
            "entities": 2,
            "attributes": 1,
            "values": 3,
            "words": 1,
            "length": 32,
        },
        [0, 5, 6, 9, 0, 4, 6, 8, 3, 3, 3, 3, 0, 4, 6, 7, 1, 5, 6, 2, 3, 3, 3, 3, 1, 4, 6, 2, 1, 4, 6, 2],
        [*[X] * 18, 9, *[X] * 7, 7, X, X, X, 7, X],
    ),
]


@pytest.mark.parametrize(("name", "settings", "inputs", "targets"), CASES, ids=[case[0] for case in CASES])
def test_answers_by_hand(name, settings, inputs, targets):
    task = TASKS[name](TASKS[name].Config(**settings))
    assert len(inputs) == len(targets) == task.config.length
    solved = task.solve(np.array([inputs, inputs], dtype=np.int64))
    assert solved.tolist() == [targets, targets]


def drawn(name: str, settings: dict, rows: int = 4_000) -> dict[tuple, int]:
    """How often each sequence with its targets comes in a large batch."""
    task = TASKS[name](TASKS[name].Config(**settings))
    inputs, targets, _ = task.batch(rows, RandomState(2))
    sequences, counts = np.unique(np.concatenate([inputs, targets], axis=1), axis=0, return_counts=True)
    length = inputs.shape[1]
    return {
        (tuple(row[:length]), tuple(row[length:])): int(n) for row, n in zip(sequences.tolist(), counts, strict=True)
    }


def mqar_sequences():
    for (a, b), (v, w), first in product(permutations((1, 2)), permutations((3, 4, 5), 2), (0, 1)):
        (q, x), (r, y) = [(a, v), (b, w)][:: 1 if first else -1]
        yield (a, v, b, w, q, 0, r, 0), (X, X, X, X, x, X, y, X)


def copying_sequences():
    for a, b, c in product((1, 2), repeat=3):
        yield (a, b, c, 0, a, b), (X, X, X, a, b, c)


def selective_sequences():
    for a, b in product((1, 2), repeat=2):
        for text in ((a, b, 0), (a, 0, b), (0, a, b)):
            yield (*text, 3, 3), (X, X, X, a, b)


def induction_sequences():
    for a, b in product((0, 1), repeat=2):
        yield (2, a, b, 2), (X, X, X, a)
        yield (a, 2, b, 2), (X, X, X, b)


def stacked_sequences():
    for (a, b), (v, w), turned in product(permutations((0, 1)), permutations((2, 3)), (0, 1)):
        shown = tuple(4 + 2 * k + x - 2 for k, x in ((a, v), (b, w)))
        questions, replies = ((b, a), (w, v)) if turned else ((a, b), (v, w))
        yield (*shown, *questions), (X, X, *replies)


def forgetting_sequences():
    for (a, b), (v, w), updated, first in product(permutations((1, 2)), permutations((3, 4, 5), 2), (0, 1), (0, 1)):
        for new in {3, 4, 5} - {(v, w)[updated]}:
            values = {a: v, b: w} | {(a, b)[updated]: new}
            q, r = (a, b)[:: 1 if first else -1]
            yield (a, v, b, w, (a, b)[updated], new, q, 0, r, 0), (X, X, X, X, X, X, values[q], X, values[r], X)


def overwrite_sequences():
    for keys in ((1, 1), (2, 2)):
        for v, w in permutations((3, 4, 5), 2):
            yield (keys[0], v, keys[1], w, keys[0], 0), (X, X, X, X, w, X)


EVEN = {"power": 1.0, "random_non_queries": False}
LISTED = [
    ("mqar", {"vocab": 6, "length": 8, "pairs": 2, **EVEN}, set(mqar_sequences())),
    ("copying", {"vocab": 3, "length": 6}, set(copying_sequences())),
    ("selective-copying", {"vocab": 4, "length": 5, "data": 2}, set(selective_sequences())),
    ("induction", {"vocab": 3, "length": 4}, set(induction_sequences())),
    ("mqar-stacked", {"keys": 2, "values": 2, "pairs": 2}, set(stacked_sequences())),
    ("forgetting", {"vocab": 6, "length": 10, "pairs": 2, "updates": 1, **EVEN}, set(forgetting_sequences())),
    ("recall-overwrite", {"vocab": 6, "length": 6, "pairs": 1, "overwrites": 1, **EVEN}, set(overwrite_sequences())),
]


@pytest.mark.parametrize(("name", "settings", "expected"), LISTED, ids=[case[0] for case in LISTED])
def test_small_sequences_are_exactly_these_and_equally_likely(name, settings, expected):
    sequences = drawn(name, settings)
    assert set(sequences) == expected
    even = sum(sequences.values()) / len(expected)
    statistic = sum((n - even) ** 2 / even for n in sequences.values())
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)

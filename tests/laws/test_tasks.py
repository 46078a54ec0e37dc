"""Laws of every task of the table.

A new task adds a line to DIGESTS (print it with `python -m tests.laws.test_tasks`) and to IMPOSSIBLE.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import numpy as np
import pytest
from numpy.random import RandomState

from synthe_core.errors import InputError
from synthe_core.tasks import TASKS
from synthe_core.tasks.task import UNSCORED, Examples, Share, Task

DIGESTS = {
    "compositional": "fa03925755e785cec4e977d827feb03e",
    "copying": "1275bf8339e6a5689546665bc81adb95",
    "discourse": "5561811fd38a726c65aa1054adf580a1",
    "forgetting": "30b95e6d6cb6f4a056ebe5efd65ea3a8",
    "induction": "04679d50b740efe110bde6060e0fc6fc",
    "listops": "49a13eeae771b867d234a1c70f41ff1a",
    "memory-copy": "48b6d631da8e641ebbde96d01f0f0694",
    "modular-arithmetic": "5a1899963fcde2aecb11bc0b18bd5353",
    "mqar": "276a8d025d3e8c3764ad08023b7e3748",
    "mqar-stacked": "5842bda511afdcee50a32861fb86c6f2",
    "needle": "1cd0b8ab393d6e3e7bd7d14e9f999ede",
    "palindrome": "dc39b13dab92edb1329c6b21fbcb5996",
    "parity": "2c80342620803f59fe44a22848e8d052",
    "passkey": "0a561af97fb60eef0b91addbe64703b6",
    "recall-overwrite": "9782f797d8969e119572c0d927a145f5",
    "selective-copying": "dc057014740b5140ffd4b0014d6ab299",
    "stack": "cc3806ce3ae0cb495378875b8d120d3a",
    "state-tracking": "9eebfc58c0e4e4636e3f6c49cb4fdeda",
}
"""The first half of sha256 over four sequences of the first share of `quick`: the same on every machine, forever."""

IMPOSSIBLE: dict[str, list[tuple[dict, str, int]]] = {
    "compositional": [
        ({"vocab": 192, "length": 52, "pairs": 9}, "length", 54),
        ({"vocab": 192, "length": 55, "pairs": 9}, "length", 56),
        ({"vocab": 192, "length": 64, "pairs": 5}, "pairs", 9),
        ({"vocab": 24, "length": 64, "pairs": 9}, "vocab", 25),
        ({"vocab": 8, "length": 64, "pairs": 4}, "vocab", 10),
    ],
    "copying": [({"length": 33}, "length", 34)],
    "discourse": [
        ({"length": 124}, "length", 128),
        ({"length": 124, "facts": 1}, "length", 128),
        ({"length": 60, "facts": 1, "updates": 0}, "length", 64),
        ({"length": 255}, "length", 256),
        ({"entities": 3, "attributes": 2}, "entities", 4),
    ],
    "forgetting": [
        ({"vocab": 64, "length": 64, "pairs": 12, "updates": 9}, "length", 66),
        ({"vocab": 64, "length": 64, "pairs": 4, "updates": 5}, "pairs", 5),
        ({"vocab": 25, "length": 64, "pairs": 12, "updates": 2}, "vocab", 26),
    ],
    "induction": [],
    "listops": [({"length": 95, "depth": 5}, "depth", 6)],
    "memory-copy": [
        ({"pairs": 27}, "pairs", 26),
        ({"pairs": 3, "questions": 4}, "pairs", 4),
    ],
    "modular-arithmetic": [({"length": 33}, "length", 34)],
    "mqar": [
        ({"vocab": 64, "length": 62, "pairs": 16}, "length", 64),
        ({"vocab": 64, "length": 63, "pairs": 8}, "length", 64),
        ({"vocab": 33, "length": 64, "pairs": 16}, "vocab", 34),
    ],
    "mqar-stacked": [
        ({"pairs": 16, "values": 20}, "keys", 16),
        ({"pairs": 16, "keys": 20}, "values", 16),
    ],
    "needle": [
        ({"length": 69, "needles": 1}, "length", 70),
        ({"length": 1000, "needles": 17}, "needles", 16),
    ],
    "palindrome": [({"length": 33}, "length", 34)],
    "parity": [],
    "passkey": [({"length": 49}, "length", 50)],
    "recall-overwrite": [
        ({"vocab": 64, "length": 62, "pairs": 8, "overwrites": 16}, "length", 64),
        ({"vocab": 30, "length": 64, "pairs": 4, "overwrites": 12}, "vocab", 31),
    ],
    "selective-copying": [({"length": 31, "data": 16}, "length", 32)],
    "stack": [],
    "state-tracking": [],
}
"""Settings that go wrong in one key, that key, and the nearest value of it that works (the hint must name it)."""


def shares() -> Iterator[tuple[str, Share]]:
    """Every share of `quick` and `standard`, each setting once."""
    for name in TASKS:
        presets = [TASKS[name].preset(preset) for preset in ("quick", "standard")]
        distinct = {share.config: share for preset in presets for share in (*preset.train, *preset.test)}
        yield from ((name, share) for share in distinct.values())


def key(case: tuple[str, Share]) -> str:
    name, share = case
    return f"{name}-{getattr(share.config, TASKS[name].axis)}-{share.config.length}"


each_share = pytest.mark.parametrize("case", list(shares()), ids=key)
each_task = pytest.mark.parametrize("name", list(TASKS))


def make(case: tuple[str, Share]) -> Task:
    return TASKS[case[0]](case[1].config)


def rows_of(task: Task, tokens: int, most: int) -> int:
    """As many rows as make about `tokens`."""
    return int(np.clip(tokens // task.config.length, 3, most))


def raw(examples: Examples) -> bytes:
    arrays = [examples.inputs, examples.targets, *(examples.slices[name] for name in sorted(examples.slices))]
    return b"".join(np.ascontiguousarray(array, dtype="<i8").tobytes() for array in arrays)


def digest(name: str) -> str:
    task = TASKS[name](TASKS[name].preset("quick").train[0].config)
    return sha256(raw(task.batch(4, RandomState(0)))).hexdigest()[:32]


@each_share
def test_the_solver_gives_the_targets(case):
    task = make(case)
    inputs, targets, _ = task.batch(rows_of(task, 8_000, 50), RandomState(7))
    before = inputs.copy()
    answers = task.solve(inputs)
    assert np.array_equal(inputs, before)
    assert answers.dtype == np.int64 and answers.shape == targets.shape
    scored = targets != UNSCORED
    assert scored.any(axis=1).all(), "a row without a scored token"
    assert np.array_equal(answers[scored], targets[scored])


@each_share
def test_tokens_are_integers_of_the_length_and_below_vocab(case):
    task = make(case)
    rows = rows_of(task, 30_000, 200)
    inputs, targets, slices = task.batch(rows, RandomState(3))
    assert isinstance(task.vocab, int)
    for array in (inputs, targets, *slices.values()):
        assert array.dtype == np.int64
        assert array.shape == (rows, task.config.length)
    assert inputs.min() >= 0 and inputs.max() < task.vocab
    scored = targets[targets != UNSCORED]
    assert scored.min() >= 0 and scored.max() < task.vocab


@each_share
def test_slices_separate_scored_tokens(case):
    task = make(case)
    _, targets, slices = task.batch(rows_of(task, 8_000, 50), RandomState(4))
    for name, labels in slices.items():
        assert (labels[targets != UNSCORED] >= 0).all(), name


@each_share
def test_a_seed_gives_its_own_bytes(case):
    task = make(case)
    one, same, other = (raw(task.batch(3, RandomState(seed))) for seed in (5, 5, 6))
    assert one == same
    assert one != other
    rng = RandomState(5)
    assert raw(task.batch(3, rng)) == one
    assert raw(task.batch(3, rng)) != one, "the batch does not move the generator on"
    np.random.seed(1)
    assert raw(make(case).batch(3, RandomState(5))) == one, "draws from the global generator"


@each_share
def test_chance_is_the_accuracy_of_the_best_constant_guess(case):
    """The token most frequent in one half is guessed throughout the other; rows are what is independent."""
    task = make(case)
    rows = rows_of(task, 400_000, 4_000)
    targets = task.batch(2 * rows, RandomState(11)).targets
    scored = targets != UNSCORED
    counts = np.bincount(targets[:rows][scored[:rows]])
    hits = (targets[rows:] == counts.argmax()).sum(axis=1)
    scored_per_row = scored[rows:].sum(axis=1)
    accuracy = hits.sum() / scored_per_row.sum()
    error = np.sqrt(((hits - accuracy * scored_per_row) ** 2).sum()) / scored_per_row.sum()
    error = max(error, np.sqrt(task.chance * (1 - task.chance) / scored_per_row.sum()))
    assert error < 0.05, "too few rows to tell"
    assert abs(accuracy - task.chance) < 4.5 * error


@each_share
def test_training_ends_with_what_is_tested(case):
    task = make(case)
    assert raw(task.at_level(task.levels).batch(3, RandomState(5))) == raw(task.batch(3, RandomState(5)))


@each_share
def test_settings_survive_a_file(case):
    config = case[1].config
    again = type(config).model_validate_json(config.model_dump_json())
    assert again == config
    assert config.type == case[0]
    assert raw(TASKS[case[0]](again).batch(2, RandomState(0))) == raw(make(case).batch(2, RandomState(0)))


@each_task
def test_presets(name):
    kind = TASKS[name]
    for preset in ("quick", "standard", "zoology"):
        train, test, _ = kind.preset(preset)
        assert train and test
        assert all(share.examples > 0 for share in (*train, *test))
        assert len({share.config for share in test}) == len(test)
        for share in (*train, *test):
            kind(share.config)
        along = [getattr(share.config, kind.axis) for share in test]
        assert len(set(along)) > 1, "nothing to plot"
        if kind.axis == "length":
            longest = max(share.config.length for share in train)
            assert {longest, 2 * longest, 4 * longest, 8 * longest} <= set(along)
    quick = kind.preset("quick").train
    assert sum(share.examples * share.config.length for share in quick) <= 3_300_000


@each_task
def test_defaults_work(name):
    config = TASKS[name].Config()
    assert config.type == name
    assert TASKS[name](config).batch(2, RandomState(0)).inputs.shape == (2, config.length)


@each_task
def test_impossible_sizes_name_the_nearest_that_works(name):
    assert name in IMPOSSIBLE
    kind = TASKS[name]
    for settings, wrong, nearest in IMPOSSIBLE[name]:
        with pytest.raises(InputError) as caught:
            kind(kind.Config(**settings))
        assert f" {nearest}" in str(caught.value.hint), (settings, caught.value.hint)
        task = kind(kind.Config(**(settings | {wrong: nearest})))
        inputs, targets, _ = task.batch(40, RandomState(0))  # at the edge the solver still agrees
        scored = targets != UNSCORED
        assert np.array_equal(task.solve(inputs)[scored], targets[scored])


@each_task
def test_the_bytes_are_the_same_on_every_machine(name):
    assert digest(name) == DIGESTS.get(name)


if __name__ == "__main__":
    for each in TASKS:
        print(f'    "{each}": "{digest(each)}",')

"""ListOps as text: every label is the value of its expression, and trees are those of the Long Range Arena."""

from __future__ import annotations

from random import Random
from statistics import median

import pytest

from synthe_core.data.corpora import open_source
from synthe_core.data.listops import ListOps
from synthe_core.errors import InputError

FOLDS = {"n": min, "x": max, "m": lambda v: int(median(v)), "s": lambda v: sum(v) % 10}
WORDS = {"[MIN": "n", "[MAX": "x", "[MED": "m", "[SM": "s"}


def examples(name: str) -> list[tuple[str, str]]:
    source = ListOps.open(name)
    assert source is not None
    return [(piece.text.decode(), piece.label) for piece in source.pieces()]


def parsed(tokens: list[str]) -> tuple[int, int, list[int]]:
    """The value, the levels and the sizes of the lists, by recursion; it consumes `tokens`, the last first."""
    token = tokens.pop()
    if token not in FOLDS:
        return int(token), 1, []
    values, levels, sizes = [], 0, []
    while tokens[-1] != "]":
        value, below, more = parsed(tokens)
        values.append(value)
        levels, sizes = max(levels, below), sizes + more
    tokens.pop()
    return FOLDS[token](values), levels + 1, [len(values), *sizes]


def test_labels_are_values_and_trees_have_the_stated_bounds():
    every_size: list[int] = []
    for text, label in examples("listops:examples=200,shortest=30,longest=90,depth=5,arguments=6"):
        assert 30 <= len(text) <= 90
        tokens = list(reversed(text))
        value, levels, sizes = parsed(tokens)
        assert not tokens and str(value) == label and levels <= 5
        every_size += sizes
    assert set(every_size) == {2, 3, 4, 5, 6}


def test_the_defaults_are_the_long_range_arenas():
    spec = ListOps.open("listops").spec  # type: ignore[union-attr]
    assert (spec.examples, spec.depth, spec.arguments) == (96_000, 10, 10)
    for text, label in examples("listops:examples=5"):
        assert 500 < len(text) < 2000 and str(parsed(list(reversed(text)))[0]) == label


def test_words_are_the_same_trees():
    short = "listops:examples=20,shortest=8,longest=40"
    for (letters, one), (words, other) in zip(examples(short), examples(f"{short},spelling=words"), strict=True):
        assert one == other
        assert [WORDS.get(word, word) for word in words.split(" ")] == list(letters)


def test_a_node_is_a_list_with_probability_a_quarter():
    """Unconditioned trees: of the roots, and of the nodes below the root of trees of three levels."""
    source = ListOps.open("listops:examples=1,shortest=4,longest=1000,depth=3,arguments=2")
    rng, lists, nodes = Random(1), 0, 0
    trees = [source._tree(rng) for _ in range(4000)]  # type: ignore[union-attr]
    roots = [tree[0] for tree in trees if tree is not None]
    for tokens in roots:
        if len(tokens) > 1:  # a list of two, each of which is a digit or a list of two digits
            nodes += 2
            lists += (len(tokens) - 4) // 3
    share = sum(len(tokens) > 1 for tokens in roots) / len(roots)
    assert abs(share - 0.25) < 0.03 and abs(lists / nodes - 0.25) < 0.05  # 4 standard deviations


def test_the_same_seed_gives_the_same_text_from_any_place():
    name = "listops:examples=6,shortest=20,longest=60,seed=3"
    source = open_source(name, "text", "path")
    whole = list(source.pieces())
    assert whole == list(source.pieces()) and list(source.pieces(4)) == whole[4:]
    assert len({piece.key for piece in whole}) == 6
    assert examples(name) != examples(name.replace("seed=3", "seed=4"))
    assert source.identity() != open_source(name.replace("seed=3", "seed=4"), "text").identity()


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("listops:longes=9", "unknown setting of listops 'longes'", "did you mean 'longest'?"),
        ("listops:seed", "seed has no value", "listops:seed=10"),
        ("listops:depth=x", "depth: ", "shortest=50"),
        ("listops:shortest=90,longest=50", "`shortest` is above `longest`", "shortest=50"),
        ("listops:depth=2", "the largest tree has 12 tokens", "shortest=50"),
        ("listop", "no such file or source", "did you mean 'listops'?"),
        ("listops:", "no such file or source", "did you mean 'listops'?"),
    ],
)
def test_bad_settings(name, message, hint):
    with pytest.raises(InputError) as raised:
        open_source(name, "text")
    assert message in raised.value.message and hint in raised.value.hint

"""A tree of prefixes spells every sequence, and holds what is shared once."""

from __future__ import annotations

import random

import pytest

from synthe_core.evaluation.prefix_tree import Node, build_tree


def spelled(roots: list[Node]) -> dict[int, list[int]]:
    """Every sequence as the paths to its ends spell it."""
    sequences: dict[int, list[int]] = {}

    def down(node: Node, before: list[int]) -> None:
        assert node.start == len(before) and node.tokens and node.end == node.start + len(node.tokens)
        text = before + list(node.tokens)
        for index in node.ends:
            assert index not in sequences
            sequences[index] = text
        below = [*node.ends, *(member for child in node.children for member in child.members)]
        assert sorted(below) == sorted(node.members)
        for child in node.children:
            down(child, text)

    for root in roots:
        down(root, [])
    return sequences


def tokens(roots: list[Node]) -> int:
    return sum(len(node.tokens) + tokens(node.children) for node in roots)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("min_saved", [1, 8])
def test_the_tree_contains_every_sequence(seed: int, min_saved: int) -> None:
    draw = random.Random(seed)
    heads = [[draw.randrange(3) for _ in range(draw.randrange(12))] for _ in range(3)]
    sequences = [
        draw.choice(heads) + [draw.randrange(3) for _ in range(draw.randrange(1, 6))] for _ in range(draw.randrange(40))
    ]
    roots = build_tree(sequences, min_saved)
    assert spelled(roots) == dict(enumerate(sequences))
    assert tokens(roots) <= sum(len(each) for each in sequences)


def test_a_shared_prefix_is_stored_once() -> None:
    head, first, second = list(range(50)), [60] * 9, [70] * 9
    sequences = [head + first + [1], head + first + [2], head + second + [3], head + second + [3]]
    (root,) = build_tree(sequences)
    assert list(root.tokens) == head and len(root.children) == 2
    assert tokens([root]) == 50 + 9 + 2 + 10
    assert spelled([root]) == dict(enumerate(sequences))


def test_a_short_shared_prefix_is_repeated() -> None:
    assert len(build_tree([[1, 2, 3], [1, 2, 4]])) == 2
    assert len(build_tree([[1, 2, 3], [1, 2, 4]], min_saved=2)) == 1


def test_a_long_chain_of_prefixes() -> None:
    sequences = [list(range(n)) for n in range(1, 1200)]
    roots = build_tree(sequences)
    seen, todo = 0, [(root, 0) for root in roots]
    while todo:
        node, depth = todo.pop()
        seen += len(node.ends)
        todo += [(child, depth + 1) for child in node.children]
    assert seen == len(sequences)
    assert build_tree([]) == []

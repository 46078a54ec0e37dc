"""Sequences of tokens as a tree in which a shared prefix is one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_SAVED = 8
"""Tokens that a shared prefix must save to become a node: its own forward pass costs something too."""


@dataclass
class Node:
    """A range of tokens that begins at place `start` of its sequences.

    members: the sequences that contain it, each distinct one once. ends: the sequences that end with it (several if
    they are equal).
    """

    start: int
    tokens: Sequence[int]
    members: list[int]
    ends: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


def build_tree(sequences: Sequence[Sequence[int]], min_saved: int = MIN_SAVED) -> list[Node]:
    """The roots of the tree of `sequences`, none of them empty. Each is the concatenation of a path from a root.

    A prefix that several distinct sequences share becomes a node if it saves at least `min_saved` tokens, and is
    otherwise repeated in each.
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    roots: list[Node] = []
    # Ranges of `order` whose sequences agree up to `common`; their first `start` tokens are in the parent nodes.
    stack: list[tuple[int, int, int, int, list[Node]]] = [(0, len(order), 0, 0, roots)] if order else []
    while stack:
        low, high, start, common, siblings = stack.pop()
        first, last = sequences[order[low]], sequences[order[high - 1]]
        agreed = common_length(first, last, common)
        if agreed == len(first) == len(last):  # all of the range are equal
            equal = [order[i] for i in range(low, high)]
            siblings.append(Node(start, first[start:], equal, equal))
            continue
        parts = _parts(sequences, order, low, high, agreed)
        if agreed > start and (len(parts) - 1) * (agreed - start) >= min_saved:
            node = Node(start, first[start:agreed], [order[i] for i in range(low, high)])
            siblings.append(node)
            siblings, start = node.children, agreed
            if len(first) == agreed:  # the shortest ends where the others differ
                ended, parts = parts[0], parts[1:]
                node.ends = [order[i] for i in range(*ended)]
        stack += [(a, b, start, agreed, siblings) for a, b in reversed(parts)]
    return roots


def common_length(one: Sequence[int], other: Sequence[int], least: int = 0) -> int:
    """The length of the common prefix of the two, which is at least `least`."""
    length = min(len(one), len(other))
    if one[least:length] == other[least:length]:
        return length
    return next(i for i in range(least, length) if one[i] != other[i])


def _parts(
    sequences: Sequence[Sequence[int]], order: Sequence[int], low: int, high: int, agreed: int
) -> list[tuple[int, int]]:
    """The range split where the token at place `agreed` changes; sequences that end there are a part of their own."""
    cuts = [low]
    before: int | None = None
    for i in range(low, high):
        sequence = sequences[order[i]]
        token = sequence[agreed] if len(sequence) > agreed else -1
        if before is not None and token != before:
            cuts.append(i)
        before = token
    return list(zip(cuts, [*cuts[1:], high], strict=True))

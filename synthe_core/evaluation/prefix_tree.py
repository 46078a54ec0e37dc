"""Sequences of tokens as a tree, in which what many begin with stands once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

WORTHWHILE = 8
"""Tokens that a shared beginning must spare, or it is not split off: a pass of its own costs something too."""


@dataclass
class Node:
    """A stretch of tokens that begins at place `start` of the sequences below it.

    ends: which of the sequences end with this stretch (several where they are equal). below: how many sequences pass
    through it, each distinct one counted once.
    """

    start: int
    tokens: Sequence[int]
    members: list[int]
    ends: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


def grow(sequences: Sequence[Sequence[int]], worthwhile: int = WORTHWHILE) -> list[Node]:
    """The roots of the tree of `sequences`, none of them empty; going down from a root spells each of them out.

    A beginning that several distinct sequences share becomes a node where it spares at least `worthwhile` tokens, and
    is otherwise repeated in each.
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    roots: list[Node] = []
    # A range of `order` whose sequences agree up to `known`, and of which the first `start` tokens are above it.
    stack: list[tuple[int, int, int, int, list[Node]]] = [(0, len(order), 0, 0, roots)] if order else []
    while stack:
        low, high, start, known, siblings = stack.pop()
        first, last = sequences[order[low]], sequences[order[high - 1]]
        agreed = _agreement(first, last, known)
        if agreed == len(first) == len(last):  # all of the range are equal
            found = [order[i] for i in range(low, high)]
            siblings.append(Node(start, first[start:], found, found))
            continue
        parts = _parts(sequences, order, low, high, agreed)
        if agreed > start and (len(parts) - 1) * (agreed - start) >= worthwhile:
            node = Node(start, first[start:agreed], [order[i] for i in range(low, high)])
            siblings.append(node)
            siblings, start = node.children, agreed
            if len(first) == agreed:  # the shortest ends where the others part
                ended, parts = parts[0], parts[1:]
                node.ends = [order[i] for i in range(*ended)]
        stack += [(a, b, start, agreed, siblings) for a, b in reversed(parts)]
    return roots


def _agreement(one: Sequence[int], other: Sequence[int], known: int) -> int:
    """How many tokens the two begin with alike, given that it is `known` at least."""
    length = min(len(one), len(other))
    if one[known:length] == other[known:length]:
        return length
    return next(i for i in range(known, length) if one[i] != other[i])


def _parts(
    sequences: Sequence[Sequence[int]], order: Sequence[int], low: int, high: int, agreed: int
) -> list[tuple[int, int]]:
    """The range cut where the token at place `agreed` changes; those that end there are a part of their own."""
    cuts = [low]
    before: int | None = None
    for i in range(low, high):
        sequence = sequences[order[i]]
        token = sequence[agreed] if len(sequence) > agreed else -1
        if before is not None and token != before:
            cuts.append(i)
        before = token
    return list(zip(cuts, [*cuts[1:], high], strict=True))

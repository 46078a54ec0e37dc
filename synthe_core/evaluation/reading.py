"""Many sequences read by a model with every shared beginning read once: its state is forked, not its work repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.evaluation.prefix_tree import Node
from synthe_core.inference.generate import PREFILL
from synthe_core.model.language_model import LanguageModel, ModelState

TOKENS = {"cpu": 4096}
"""Tokens a pass, padding included, where no batch size is asked for; on devices not named here:"""
TOKENS_ELSEWHERE = 65_536
LIKE = 0.75
"""How long the shortest of a batch is at least, as a share of the longest, give or take a few tokens."""
PASS = 16
"""Tokens of padding that a batch takes in for still shorter nodes, since another pass would cost more."""
STATES = 1 << 30
"""Bytes of state that the rows of a batch may take."""


@dataclass
class Effort:
    """asked: the tokens of all requests, each read by itself. computed: the tokens that went through the model, padding
    included. written: of those, tokens that were generated."""

    asked: int = 0
    computed: int = 0
    written: int = 0


class Read(NamedTuple):
    """A piece of a batch of nodes: their tokens from `first` on, counted from each node's own beginning.

    hidden: [B, T, D], what the head reads; it means nothing past a node's end. state: after the whole batch, None while
    pieces are to follow and where nobody asked for it.
    """

    nodes: list[Node]
    first: int
    hidden: Tensor
    state: ModelState | None


class Reader:
    """Reads trees of sequences with `model`, at most `batch` rows at a time (None: as many as the device likes).

    Batches hold nodes of like length, so that little is padding; a node's children follow at once, from rows of its
    state, so that few states are held. What comes out does not depend on how nodes are batched, up to rounding.
    """

    def __init__(self, model: LanguageModel, batch: int | None = None, check: Callable[[], None] | None = None) -> None:
        self.model, self.batch = model, batch
        self.device = model.embedding.weight.device
        self.effort = Effort()
        self.check = check or (lambda: None)  # called before every pass; may raise to end the work

    @torch.no_grad()
    def read(self, roots: Sequence[Node], ends: bool = False) -> Iterator[Read]:
        """Every node once, parents first. ends: the states at the ends of sequences are wanted too."""
        todo: list[tuple[list[Node], ModelState | None, list[int]]]
        todo = [(batch, None, []) for batch in reversed(self.batches(roots))]  # with the state above, and rows of it
        while todo:
            nodes, above, rows = todo.pop()
            state = None if above is None else states.take(above, torch.tensor(rows, device=self.device))
            below = [(child, row) for row, node in enumerate(nodes) for child in node.children]
            for piece in self._pieces(nodes, state, ends or bool(below)):
                yield piece
            if below:
                row_of = {id(child): row for child, row in below}
                for batch in reversed(self.batches([child for child, _ in below])):
                    todo.append((batch, piece.state, [row_of[id(child)] for child in batch]))

    def _pieces(self, nodes: list[Node], state: ModelState | None, onward: bool) -> Iterator[Read]:
        """onward: from the state after them. Else padding need not be kept out of it: no token sees a later one."""
        lengths = [len(node.tokens) for node in nodes]
        longest = max(lengths)
        tokens = torch.zeros(len(nodes), longest, dtype=torch.int64)
        for row, node in enumerate(nodes):
            tokens[row, : lengths[row]] = torch.tensor(node.tokens)
        tokens = tokens.to(self.device)
        ragged = onward and min(lengths) < longest
        ends = torch.tensor(lengths, device=self.device)
        for first in range(0, longest, PREFILL):
            self.check()
            piece = tokens[:, first : first + PREFILL]
            left = (ends - first).clamp(0, piece.shape[1]) if ragged else None
            hidden, state, _ = self.model.hidden(piece, state, left)
            self.effort.computed += piece.numel()
            yield Read(nodes, first, hidden, state if onward and first + PREFILL >= longest else None)

    def batches(self, nodes: Sequence[Node]) -> list[list[Node]]:
        """The nodes by falling length, so that what takes most memory comes first."""
        found: list[list[Node]] = []
        room = longest = spare = 0
        for node in sorted(nodes, key=lambda node: (-len(node.tokens), node.members[0])):
            length = len(node.tokens)
            if length < LIKE * longest - 4:
                spare -= longest - length
            if not found or len(found[-1]) >= room or spare < 0:
                found.append([])
                longest, room, spare = length, self.rows(length, node.end), PASS
            found[-1].append(node)
        return found

    def rows(self, length: int, end: int) -> int:
        """How many rows of `length` tokens, up to place `end` of their sequences, make a batch."""
        held = max(1, STATES // max(1, self.model.state_bytes(end)))
        if self.batch is not None:
            return min(self.batch, held)
        return max(1, min(TOKENS.get(self.device.type, TOKENS_ELSEWHERE) // max(1, min(length, PREFILL)), held))

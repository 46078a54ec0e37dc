"""Reading many sequences with a model. A prefix that several share is evaluated once; its state is then copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.evaluation.prefix_tree import Node
from synthe_core.model.language_model import LanguageModel, ModelState
from synthe_core.model.prefill import pass_limits

TOKENS = {"cpu": 4096}
"""Tokens of a forward pass by device, padding included, if no batch size is given; for other devices:"""
DEFAULT_TOKENS = 65_536
MIN_LENGTH_RATIO = 0.75
"""Length of the shortest node of a batch over that of the longest, give or take a few tokens."""
SPARE_PADDING = 16
"""Tokens of padding that a batch may spend on shorter nodes, since another pass would cost more."""
MAX_STATE_BYTES = 1 << 30
"""Bytes of state of the rows of a batch."""


@dataclass
class TokenCounts:
    """requested: tokens of all requests, shared prefixes counted in each. computed: tokens that the model has read,
    padding included. generated: the generated ones of those."""

    requested: int = 0
    computed: int = 0
    generated: int = 0


class Read(NamedTuple):
    """A chunk of a batch of nodes: their tokens from `first` on, counted from each node's own start.

    hidden: [B, T, D], the input of the head; undefined past a node's end. state: after the whole batch; None before the
    last chunk, and if it is not needed.
    """

    nodes: list[Node]
    first: int
    hidden: Tensor
    state: ModelState | None


class Reader:
    """Reads prefix trees with `model`, at most `batch` rows at a time (None: chosen for the device).

    A batch has nodes of similar length, so that little is padding. A node's children are read next, from rows of its
    state, so that few states are in memory. Results do not depend on how nodes are batched, up to rounding.
    """

    def __init__(self, model: LanguageModel, batch: int | None = None, check: Callable[[], None] | None = None) -> None:
        self.model, self.batch = model, batch
        self.device = next(model.parameters()).device
        self.counts = TokenCounts()
        self.check = check or (lambda: None)  # called before every pass; raises to stop

    @torch.no_grad()
    def read(self, roots: Sequence[Node]) -> Iterator[Read]:
        """Reads every node once, parents first."""
        todo: list[tuple[list[Node], ModelState | None, list[int]]]
        todo = [(batch, None, []) for batch in reversed(self.batches(roots))]  # with the parents' state, and rows of it
        while todo:
            nodes, parent_state, rows = todo.pop()
            state = None if parent_state is None else states.take(parent_state, torch.tensor(rows, device=self.device))
            children = [(child, row) for row, node in enumerate(nodes) for child in node.children]
            for piece in self._pieces(nodes, state, bool(children)):
                yield piece
            if children:
                row_of = {id(child): row for child, row in children}
                for batch in reversed(self.batches([child for child, _ in children])):
                    todo.append((batch, piece.state, [row_of[id(child)] for child in batch]))

    def _pieces(self, nodes: list[Node], state: ModelState | None, needs_state: bool) -> Iterator[Read]:
        """needs_state: masks padding, so that it does not enter the state after the nodes."""
        lengths = [len(node.tokens) for node in nodes]
        longest = max(lengths)
        tokens = torch.zeros(len(nodes), longest, dtype=torch.int64)
        for row, node in enumerate(nodes):
            tokens[row, : lengths[row]] = torch.tensor(node.tokens)
        tokens = tokens.to(self.device)
        ragged = needs_state and min(lengths) < longest
        ends = torch.tensor(lengths, device=self.device)
        chunk = pass_limits(self.model, DEFAULT_TOKENS, MAX_STATE_BYTES).chunk
        for first in range(0, longest, chunk):
            self.check()
            piece = tokens[:, first : first + chunk]
            left = (ends - first).clamp(0, piece.shape[1]) if ragged else None
            hidden, state, _ = self.model.hidden(piece, state, left)
            self.counts.computed += piece.numel()
            yield Read(nodes, first, hidden, state if needs_state and first + chunk >= longest else None)

    def batches(self, nodes: Sequence[Node]) -> list[list[Node]]:
        """The nodes by decreasing length, so that those that take most memory come first."""
        batches: list[list[Node]] = []
        max_rows = longest = spare = 0
        for node in sorted(nodes, key=lambda node: (-len(node.tokens), node.members[0])):
            length = len(node.tokens)
            if length < MIN_LENGTH_RATIO * longest - 4:
                spare -= longest - length
            if not batches or len(batches[-1]) >= max_rows or spare < 0:
                batches.append([])
                longest, max_rows, spare = length, self.rows(length, node.end), SPARE_PADDING
            batches[-1].append(node)
        return batches

    def rows(self, length: int, end: int) -> int:
        """The rows of a batch of nodes of `length` tokens that end at place `end` of their sequences."""
        most = pass_limits(self.model, TOKENS.get(self.device.type, DEFAULT_TOKENS), MAX_STATE_BYTES)
        limit = max(1, most.states // max(1, self.model.state_bytes(end)))
        if self.batch is not None:
            return min(self.batch, limit)
        return max(1, min(most.tokens // max(1, min(length, most.chunk)), limit))

"""The state of the running sequences of one model: a row for each, in slots that sequences take and leave."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.adapters.lora import Adapter
from synthe_core.hardware.transfer import to_device
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.sequence import Sequence
from synthe_core.layers.adapter_batch import AdapterBatch

FREE_SHARE = 4
"""One slot in so many may be free: closing the gap each time a sequence leaves would copy everybody's state."""


class StateBatch:
    """slots: a sequence or None each; `state` has a row for every slot. A free slot is computed and means nothing."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.slots: list[Sequence | None] = []
        self.state: Any = None
        template = model.model.init_state(1)
        self._adapters: AdapterBatch | None = None  # of the slots as they are
        self._grows = [leaf.dim() > 1 and leaf.shape[1] == 0 for _, leaf in states.named_leaves(template)]

    @property
    def sequences(self) -> list[Sequence]:
        return [sequence for sequence in self.slots if sequence is not None]

    @property
    def last_token_ids(self) -> Tensor:
        """int64 [slots, 1]: what the next pass reads."""
        tokens = [0 if sequence is None else sequence.last_token_id for sequence in self.slots]
        return to_device(tokens, self.model.device)[:, None]

    @property
    def adapters(self) -> AdapterBatch:
        """The adapter of every slot; a free one has that of the slot before it, so that it divides no group."""
        if self._adapters is None:
            adapters: list[Adapter | None] = []
            for sequence in self.slots:
                before = adapters[-1] if adapters else None
                adapters.append(before if sequence is None else sequence.resolved.adapter)
            self._adapters = self.model.adapter_batch(adapters)
        return self._adapters

    def occupied(self) -> list[int] | None:
        """The slots of `sequences`; None if no slot is free."""
        taken = [slot for slot, sequence in enumerate(self.slots) if sequence is not None]
        return None if len(taken) == len(self.slots) else taken

    def add(self, sequences: Many[Sequence]) -> None:
        """Gives each sequence a slot, and the slot its state."""
        joined = states.join([sequence.state for sequence in sequences])
        self._adapters = None
        if not self.slots:
            self.slots, self.state = list(sequences), joined
        else:
            self._trim()
            free = [slot for slot, sequence in enumerate(self.slots) if sequence is None]
            if (more := len(sequences) - len(free)) > 0:
                state = states.join([self.state, self.model.model.init_state(more)])
                free += range(len(self.slots), len(self.slots) + more)
                self.slots, self.state = [*self.slots, *[None] * more], state
            self._write(free[: len(sequences)], joined)
            for slot, sequence in zip(free, sequences, strict=False):
                self.slots[slot] = sequence
        for sequence in sequences:
            sequence.state = None

    def state_of(self, sequence: Sequence) -> Any:
        """A copy of the sequence's state, with the windows that it has alone."""
        return self.rows_of([sequence])

    def rows_of(self, sequences: Many[Sequence]) -> Any:
        """A copy of these sequences' states as one, with windows as long as the longest of them has."""
        index = to_device([self.slots.index(each) for each in sequences], self.model.device)
        return self.trimmed(states.take(self.state, index), max(each.num_state_tokens for each in sequences))

    def replace_rows(self, sequences: Many[Sequence], state: Any) -> None:
        """Gives these sequences' slots other states, the rows of `state`."""
        self._write([self.slots.index(each) for each in sequences], state)

    def remove(self, sequence: Sequence) -> None:
        """Frees the sequence's slot."""
        self.slots[self.slots.index(sequence)] = None
        self._adapters = None  # an adapter that nobody uses any more may be detached

    def compact(self) -> None:
        """Drops free slots if there are many."""
        taken = [slot for slot, sequence in enumerate(self.slots) if sequence is not None]
        if not taken:
            self.slots, self.state, self._adapters = [], None, None
        elif FREE_SHARE * (len(self.slots) - len(taken)) > len(self.slots):
            self.state = states.take(self.state, to_device(taken, self.model.device))
            self.slots, self._adapters = [self.slots[slot] for slot in taken], None
            self._trim()

    def _write(self, slots: Many[int], rows: Any) -> None:
        self.state = _with_rows(self.state, to_device(list(slots), self.model.device), rows)

    def _trim(self) -> None:
        """Shortens windows that a long sequence has left wide."""
        longest = max((sequence.num_state_tokens for sequence in self.sequences), default=0)
        self.state = self.trimmed(self.state, longest)

    def trimmed(self, state: Any, length: int) -> Any:
        """The state with windows of at most `length` tokens; longer rows beside it may have widened them."""
        if not any(self._grows):
            return state
        grows = iter(self._grows)

        def cut(leaf: Tensor) -> Tensor:
            excess = leaf.shape[1] - length if next(grows) else 0
            return leaf if excess <= 0 else leaf[:, excess:].clone()  # a view would keep the whole

        return states.map_leaves(cut, state)


def _with_rows(tree: Any, index: Tensor, part: Any) -> Any:
    """`tree` with rows `index` replaced by those of `part`, in place where a leaf belongs to nobody else. Windows that
    are shorter grow at the front."""
    written: set[int] = set()

    def replace(leaf: Tensor, rows: Tensor) -> Tensor:
        if leaf.dim() > 1 and leaf.shape[1] != rows.shape[1]:
            longest = max(leaf.shape[1], rows.shape[1])
            leaf, rows = _grown(leaf, longest), _grown(rows, longest)
        rows = rows.to(leaf.dtype)
        if leaf.is_contiguous() and leaf.is_inference() and leaf.data_ptr() not in written:
            written.add(leaf.data_ptr())
            return leaf.index_copy_(0, index, rows)
        return leaf.index_copy(0, index, rows)

    return states.map_leaves(replace, tree, part)


def _grown(leaf: Tensor, length: int) -> Tensor:
    missing = length - leaf.shape[1]
    return leaf if missing == 0 else torch.cat([leaf.new_zeros(leaf.shape[0], missing, *leaf.shape[2:]), leaf], dim=1)

"""Batches of packed tokens, in an order that a small cursor restores exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synthe_core.data.mixture_order import MixtureOrder
from synthe_core.data.prepare import Packed
from synthe_core.data.shards import Split
from synthe_core.errors import InputError

ALL_ROWS = slice(None)


class Batch(NamedTuple):
    """int64 [B, T] each; `targets` are the tokens that follow `inputs`, -100 where there is no target.

    lengths: int64 [B], each row's tokens before its padding; None without padding.
    group: rows that belong together and stay in one micro-batch, such as the chosen and the rejected answer of a pair:
    rows 0 to group - 1, and so on.
    extras: further tensors of an objective by name, a row each: [B, ...].
    token_extras: the same, a token each: [B, T, ...].
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None = None
    group: int = 1
    extras: Mapping[str, Tensor] = MappingProxyType({})
    token_extras: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        return self.inputs.numel() if self.lengths is None else int(self.lengths.sum())

    def select(self, rows: slice | Tensor) -> Batch:
        """Some of the rows; padded ones are cut to the longest of them."""
        lengths = None if self.lengths is None else self.lengths[rows]
        time = self.inputs.shape[1] if lengths is None else max(1, int(lengths.max()))
        extras = {name: tensor[rows] for name, tensor in self.extras.items()}
        token_extras = {name: tensor[rows, :time] for name, tensor in self.token_extras.items()}
        return Batch(self.inputs[rows, :time], self.targets[rows, :time], lengths, self.group, extras, token_extras)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`. A CUDA device copies it while the host goes on."""
        batch = self.pinned(device)
        return batch._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self, device: torch.device) -> Batch:
        """The batch in memory that `device` copies from without the host's help: page-locked for CUDA."""
        if device.type != "cuda":
            return self
        return self._mapped(lambda tensor: tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed."""
        return Batch(
            change(self.inputs),
            change(self.targets),
            None if self.lengths is None else change(self.lengths),
            self.group,
            {name: change(tensor) for name, tensor in self.extras.items()},
            {name: change(tensor) for name, tensor in self.token_extras.items()},
        )


class Window(NamedTuple):
    """Validation text: int64 [B, T] each, and the UTF-8 bytes that `targets` stand for."""

    inputs: Tensor
    targets: Tensor
    bytes: float


class Stream:
    """An endless stream of training sequences, `sequence` tokens each.

    Shuffled (the default): in the order of a `MixtureOrder`.

    Carried (`carry=True`): row i of a batch continues row i of the batch before, for truncated
    back-propagation with carried state. The `batch` rows are shared among the sources by weight; each reads its own
    stretch of text, and then that of the next row.

    The cursor counts sequences: `next(8)` is `next(4)` twice, so a micro-batch may change without changing the order
    (when carried, sequence n belongs to row n mod `batch`). The order depends on seed, cursor and sources alone.
    """

    def __init__(self, packed: Packed, batch: int, sequence: int, seed: int = 0, carry: bool = False) -> None:
        self.batch = batch
        self.sequence = sequence
        self._splits = [source.train for source in packed.train]
        self._names = [source.name for source in packed.train]
        self._seed = seed
        self._carry = carry
        counts = [self._sequences(number) for number in range(len(self._splits))]
        self._order = MixtureOrder(counts, [source.weight for source in packed.train], seed)
        self._rows = self._share_rows() if carry else []
        for number, (name, split) in enumerate(zip(self._names, self._splits, strict=True)):
            if self._sequences(number) < 1:
                raise self._too_short(name, split, 1)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next(self.batch)

    @property
    def sequences(self) -> int:
        """Sequences of all sources."""
        return sum(self._sequences(number) for number in range(len(self._splits)))

    def next(self, count: int, rows: slice | None = None) -> Batch:
        """The next `count` sequences, or only these `rows` of them: of the others no text is read."""
        places = [self._carried() if self._carry else self._shuffled() for _ in range(count)][rows or ALL_ROWS]
        ids = np.empty((len(places), self.sequence + 1), dtype=np.int64)
        for number, split in enumerate(self._splits):
            mine = [row for row, (source, _) in enumerate(places) if source == number]
            ids[mine] = split.gather(np.array([places[row][1] for row in mine], dtype=np.int64), self.sequence + 1)
        tokens = torch.from_numpy(ids)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def cursor(self) -> dict[str, Any]:
        """The position of the stream, as JSON; `seek` restores it."""
        return {**self._order.cursor(), "rows": self.batch} if self._carry else self._order.cursor()

    def seek(self, cursor: dict[str, Any]) -> None:
        """Moves to the cursor of a stream of the same data, sequence and seed. InputError if the data differ."""
        rows = cursor.get("rows")
        if rows != (self.batch if self._carry else None):
            was, now = (f"carried over {n} rows" if n else "shuffled" for n in (rows, self.batch * self._carry))
            raise InputError(f"the stream was saved {was}, and is now {now}", "resume with the batch of the run")
        self._order.seek(cursor)

    def _shuffled(self) -> tuple[int, int]:
        """(source, first token) of the next sequence."""
        source, number = self._order.draw()
        return source, number * self.sequence

    def _sequences(self, source: int) -> int:
        return (self._splits[source].tokens - 1) // self.sequence

    def _share_rows(self) -> list[tuple[int, int, int]]:
        """(source, first stretch, stretches) of every row: shares by largest remainder, at least a row each."""
        if self.batch < len(self._splits):
            raise InputError(
                f"{len(self._splits)} sources need at least as many rows when state is carried, and a batch has "
                f"{self.batch}",
                f"raise the batch to {len(self._splits)}, or do not carry state",
            )
        exact = self._order.share * self.batch
        rows = np.maximum(1, np.floor(exact)).astype(np.int64)
        while rows.sum() > self.batch:
            rows[int(np.argmax(np.where(rows > 1, rows - exact, -np.inf)))] -= 1
        while rows.sum() < self.batch:
            rows[int(np.argmax(exact - rows))] += 1
        for name, split, stretches in zip(self._names, self._splits, rows.tolist(), strict=True):
            if (split.tokens - 1) // stretches < self.sequence:
                raise self._too_short(name, split, stretches)
        first = [int(np.random.default_rng([self._seed, n]).integers(stretches)) for n, stretches in enumerate(rows)]
        return [
            (n, stretch + first[n], stretches)
            for n, stretches in enumerate(rows.tolist())
            for stretch in range(stretches)
        ]

    def _carried(self) -> tuple[int, int]:
        """(source, first token) of the next sequence when rows are carried on."""
        step, row = divmod(self._order.done, self.batch)
        source, stretch, stretches = self._rows[row]
        length = (self._splits[source].tokens - 1) // stretches
        epoch, position = divmod(step, length // self.sequence)
        self._order.count(source)
        return source, (stretch + epoch) % stretches * length + position * self.sequence

    def _too_short(self, name: str, split: Split, rows: int) -> InputError:
        needed = rows * self.sequence + 1
        carried = f" over {rows} rows" if rows > 1 else ""
        return InputError(
            f"'{name}' is shorter than one sequence{carried}: it has {split.tokens} training tokens, and sequences of "
            f"{self.sequence} take {needed}",
            "give more text, a shorter data.sequence" + (", or a smaller batch" if rows > 1 else ""),
        )


def num_windows(split: Split, sequence: int) -> int:
    """How many windows `windows` gives of a split."""
    return max(0, split.tokens - 1) // max(1, min(sequence, split.tokens - 1))


def windows(split: Split, sequence: int, limit: int | None = None, batch: int = 1) -> Iterator[Window]:
    """`split` in windows of `sequence` targets, one after another without overlap, `batch` of them at a time.

    The first token is never a target and a remainder shorter than a window is left out; a split that is shorter than
    one window is one short window. With fewer than all (`limit` windows), they are spread evenly over the split.
    """
    length = min(sequence, split.tokens - 1)
    if length < 1:
        return
    count = (split.tokens - 1) // length
    chosen = np.arange(count) if limit is None or limit >= count else np.arange(limit) * count // limit
    for first in range(0, len(chosen), batch):
        rows = split.gather(chosen[first : first + batch] * length, length + 1)
        tokens = torch.from_numpy(rows)
        yield Window(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), split.bytes_in(rows[:, 1:]))

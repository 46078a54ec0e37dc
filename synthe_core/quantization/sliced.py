"""A matrix of which a slice of rows is in memory at a time: an embedding or a head that is larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from synthe_core.quantization.matrix import QuantizedMatrix


class SlicedMatrix(QuantizedMatrix):
    """A frozen matrix [rows, columns] in slices, one below the other.

    slices: matrices whose numbers are there within `holding(number)`; none, where only single rows are wanted.
    read: rows by index, int64 [r] -> float32 [r, columns].
    """

    def __init__(
        self,
        shape: tuple[int, int],
        slices: Sequence[QuantizedMatrix],
        holding: Callable[[int], AbstractContextManager[None]],
        read: Callable[[Tensor], Tensor],
        stored: str,
    ) -> None:
        super().__init__(*shape)
        self._slices, self._holding, self._read, self._stored = tuple(slices), holding, read, stored

    @property
    def format(self) -> str:
        return self._stored

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def rows(self, index: slice | Tensor) -> Tensor:
        if isinstance(index, Tensor):
            return self._read(index)
        if not self._slices:
            return self._read(torch.arange(*index.indices(self.shape[0])))
        return torch.cat(self.of_slices(lambda matrix, rows: matrix.rows(rows).clone(), index))

    def parts(self, selected: slice | None = None, multiple: int = 1) -> Iterator[slice]:
        """A part for each slice, so that each is read once."""
        if not self._slices:
            yield from super().parts(selected, multiple)
        for _, first, own in self._spans(selected):
            yield slice(first + own.start, first + own.stop)

    def of_slices(
        self, function: Callable[[QuantizedMatrix, slice], Tensor], selected: slice | None = None
    ) -> list[Tensor]:
        """function(slice, rows of it) for each slice that has some of the `selected` rows, while it is in memory."""
        made = []
        for number, _, own in self._spans(selected):
            with self._holding(number):
                made.append(function(self._slices[number], own))
        return made

    def _spans(self, selected: slice | None) -> Iterator[tuple[int, int, slice]]:
        """The number and the first row of each slice of which rows are selected, and which of its own."""
        start, stop, _ = (selected or slice(None)).indices(self.shape[0])
        first = 0
        for number, each in enumerate(self._slices):
            count = each.shape[0]
            own = slice(max(start - first, 0), min(stop - first, count))
            if own.start < own.stop:
                yield number, first, own
            first += count

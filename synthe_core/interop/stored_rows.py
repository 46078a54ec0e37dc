"""Our matrices as the rows that a file stores, quantised as they are: rows move whole, so that no number changes.

Which stored row each of ours is follows from the conversion itself, applied to the numbers of rows. Where a conversion
does more than to reorder rows, the matrix is not stored anywhere and there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.quantization.ggml import BlockFormat
from synthe_core.quantization.matrix import BlockMatrix, FloatMatrix, QuantizedMatrix, StackedMatrix

MOST_ROWS = 1 << 24
"""Whole numbers that float32 has all of."""


class StoredRows(NamedTuple):
    """A stored matrix: blocks uint8 [rows, bytes of a row], or numbers [rows, columns] in their own type."""

    data: Tensor
    form: BlockFormat | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.data.shape
        return rows, columns if self.form is None else columns // self.form.nbytes * self.form.size

    @property
    def kind(self) -> object:
        """Equal for rows that can be in one matrix."""
        return self.data.dtype if self.form is None else self.form.name


class Stored(NamedTuple):
    """What a published tensor is made of: stored matrices, and how; `make` is None for the one matrix as it is."""

    parts: list[StoredRows]
    make: Callable[..., Tensor] | None = None


def stored_matrix(
    stored: Sequence[Stored], make: Callable[[list[Tensor]], Tensor], exact: bool, value: Callable[[], Tensor]
) -> QuantizedMatrix | None:
    """The matrix that `make` makes of published tensors, in the formats in which these are stored. None if it has other
    rows than they.

    exact: `make` concatenates rows. Otherwise the result is compared with `value()`, the matrix as it is read.
    """
    parts = [part for each in stored for part in each.parts]
    if (order := _order(stored, make)) is None or len({part.shape[1] for part in parts}) != 1:
        return None
    matrix = _ordered(parts, order)
    if exact and all(each.make is None for each in stored):
        return matrix
    expected = value()
    if matrix.shape != expected.shape:
        return None
    return matrix if all(torch.equal(matrix.rows(rows), expected[rows]) for rows in matrix.parts()) else None


def _order(stored: Sequence[Stored], make: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    """Of each row of the result, the number of the stored row that it is, int64; None if it is none."""
    count, made = 0, []
    for each in stored:
        numbers = []
        for part in each.parts:
            rows, columns = part.shape
            numbers.append(torch.arange(count, count + rows, dtype=torch.float32)[:, None].expand(rows, columns))
            count += rows
        made.append((numbers[0] if each.make is None else each.make, numbers))
    if count > MOST_ROWS:
        return None
    try:
        tensors = [first if isinstance(first, Tensor) else first(*numbers) for first, numbers in made]
        result = make(tensors)
    except (RuntimeError, IndexError, ValueError):
        return None
    order = result[:, 0] if result.dim() == 2 else None
    if order is None or not bool((result == order[:, None]).all()):
        return None
    valid = bool(((order >= 0) & (order < count) & (order == order.round())).all())
    return order.long() if valid else None


def _ordered(parts: Sequence[StoredRows], order: Tensor) -> QuantizedMatrix:
    """The rows of `parts`, numbered one part after the other, in an order."""
    starts = torch.tensor([0, *(part.shape[0] for part in parts)]).cumsum(0)
    kinds = list(dict.fromkeys(part.kind for part in parts))
    kind_of_part = torch.tensor([kinds.index(part.kind) for part in parts])
    part_of_row = torch.bucketize(order, starts[1:], right=True)
    matrices = []
    for rows, owners in _runs(kind_of_part[part_of_row], order, part_of_row):
        pieces = [parts[int(each[0])].data[piece - starts[each[0]]] for piece, each in _runs(owners, rows, owners)]
        form = parts[int(owners[0])].form
        data = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        matrices.append(FloatMatrix(data) if form is None else BlockMatrix(form, data))
    return matrices[0] if len(matrices) == 1 else StackedMatrix(matrices)


def _runs(labels: Tensor, first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The parts of two vectors in which the labels are the same."""
    ends = (labels.diff() != 0).nonzero()[:, 0] + 1
    return zip(first.tensor_split(ends), second.tensor_split(ends), strict=True)

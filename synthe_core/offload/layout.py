"""Which tensors of a model are read from where, and what of embedding and head stays in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from synthe_core.model.language_model import LanguageModel
from synthe_core.model.quantized_model import quantizable_matrices
from synthe_core.offload.converted_weights import ConvertedWeights
from synthe_core.offload.stored_matrix import StoredMatrix
from synthe_core.storage.checkpoint.quantized import VOCABULARY

ALIGNMENT = 64


class Source(NamedTuple):
    """A tensor of the model, or a matrix that stays quantised: its parameter or its matrix' parameter, its learner, its
    bytes in memory, and where it is on disk: extents of its numbers, or its name in the converted file."""

    name: str
    parameter: Tensor
    group: int | None
    nbytes: int
    extents: list[Any] | None
    converted: ConvertedWeights | None


class Layout(NamedTuple):
    """What of embedding and head is not in memory: by_rows, of which rows are read; head, of which `slices` of units
    are read in each pass."""

    by_rows: list[StoredMatrix]
    head: StoredMatrix | None
    slices: list[tuple[int, int]]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.by_rows) + (self.head.nbytes if self.head is not None else 0)

    @property
    def slice_bytes(self) -> list[int]:
        if self.head is None:
            return []
        each = -(-self.head.nbytes // self.head.units)
        return [aligned((b - a) * each) + 2 * ALIGNMENT for a, b in self.slices]

    def stored(self, name: str) -> StoredMatrix | None:
        """The matrix of this name, if it is not in memory."""
        return next((each for each in (*self.by_rows, self.head) if each is not None and each.name == name), None)


def layouts_of(model: LanguageModel, sources: Sequence[Source], sizes: Sequence[int]) -> list[Layout]:
    """Without an embedding that is none of the head's, and without the head too. Slices are about as large as
    layers."""
    matrices = {id(each) for each in quantizable_matrices(model).values()}
    by_rows: list[StoredMatrix] = []
    head: StoredMatrix | None = None
    for each in sources:
        if each.name not in VOCABULARY or id(each.parameter) not in matrices:
            continue
        if each.converted is not None and len(each.converted.matrices.get(each.name, ())) > 1:
            continue
        rows, columns = each.parameter.shape
        stored = StoredMatrix(each.name, (rows, columns), each.extents, each.converted)
        if model.head._parameters["weight"] is each.parameter:
            head = stored
        else:
            by_rows.append(stored)
    made = [Layout(by_rows, None, [])]
    if head is not None:
        count = max(1, -(-head.nbytes // max(*sizes, 1)))
        step = -(-head.units // count)
        spans = [(first, min(first + step, head.units)) for first in range(0, head.units, step)]
        made.append(Layout(by_rows, head, spans))
    return made


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT

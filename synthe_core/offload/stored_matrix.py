"""Rows of a matrix on disk: a slice of them on given memory, or single ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from synthe_core.offload.converted_weights import PARTS, VALUES, ConvertedWeights
from synthe_core.offload.file_reader import FileReader
from synthe_core.offload.streamed_weights import StoredTensor, read_tensors
from synthe_core.quantization.matrix import FloatMatrix, QuantizedMatrix
from synthe_core.quantization.packed import LANES, PackedMatrix
from synthe_core.storage.tensor_file import Extent

Place = Callable[..., Tensor]
"""Makes a tensor: `place(shape, dtype=...)`."""
AT_ONCE = 256  # single rows that are read together


class StoredMatrix:
    """The matrix `name` [rows, columns] of a model. It is read in units of `unit` rows: one of floats, the eight that
    stand together in a packed matrix."""

    def __init__(
        self, name: str, shape: tuple[int, int], extents: list[Extent] | None, converted: ConvertedWeights | None
    ) -> None:
        """extents: of its numbers, where no file of converted weights has it."""
        self.name, self.shape = name, shape
        self._packed: list[Any] | None = None
        names = {name: extents or []}
        if converted is not None:
            packed = converted.matrices.get(name, [])
            assert len(packed) < 2, "a stack of matrices has no units of its own"
            self._packed = packed[0] if packed else None
            names = {name: converted.extents(name)} if not packed else _parts(converted, name)
        entries: Any = {} if converted is None else converted.file.entries
        self._tensors = {
            key: (own, entries[key].dtype, entries[key].shape) if key in entries else (own, torch.float32, shape)
            for key, own in names.items()
        }
        self.unit = LANES if f"{name}.0.{PARTS[0]}" in self._tensors else 1

    @property
    def format(self) -> str:
        """The name of its format in memory."""
        return "float32" if self._packed is None else str(self._packed[3])

    @property
    def units(self) -> int:
        return -(-self.shape[0] // self.unit)

    @property
    def nbytes(self) -> int:
        """In memory."""
        return sum(torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in self._tensors.values())

    def placed(self, spans: Sequence[tuple[int, int]], place: Place) -> tuple[QuantizedMatrix, list[StoredTensor]]:
        """The units from a to b of each span, one below the other, on tensors that `place` makes; what is read into
        these."""
        count, made = sum(b - a for a, b in spans), list[StoredTensor]()
        for key, (extents, dtype, shape) in self._tensors.items():
            each = torch.Size(shape[1:]).numel()
            parts = [part for a, b in spans for part in _within(extents, a * each, (b - a) * each)]
            made.append(StoredTensor(key, parts, place((count, *shape[1:]), dtype=dtype)))
        if self.unit == 1:
            return FloatMatrix(made[0].tensor), made
        assert self._packed is not None
        codes, scales, *offsets = (each.tensor for each in made)
        _, columns, factor, stored = self._packed
        ends = spans[-1][1] == self.units
        rows = count * LANES - (self.units * LANES - self.shape[0] if ends else 0)
        own = offsets[0] if offsets else None
        return PackedMatrix(torch.Size((rows, columns)), codes, scales, own, factor, stored), made


class RowReader:
    """`reader(index)`: rows of a matrix on disk, int64 [r] -> float32 [r, columns]. By any thread."""

    def __init__(self, stored: StoredMatrix, source: object) -> None:
        """source: what the weights are of, for messages."""
        self._stored, self._source = stored, source
        self._reader, self._lock = FileReader(), threading.Lock()

    def __call__(self, index: Tensor) -> Tensor:
        rows = torch.empty(len(index), self._stored.shape[1])
        with self._lock:
            for first in range(0, len(index), AT_ONCE):
                part = slice(first, first + AT_ONCE)
                rows[part] = self._few(index[part])
        return rows

    def close(self) -> None:
        self._reader.close()

    def _few(self, index: Tensor) -> Tensor:
        unit = self._stored.unit
        units, place = (index // unit).unique(return_inverse=True)
        matrix, tensors = self._stored.placed([(each, each + 1) for each in units.tolist()], torch.empty)
        read_tensors(self._reader, tensors, self._source, check=True)
        return matrix.rows(place * unit + index % unit)


def _parts(converted: ConvertedWeights, name: str) -> dict[str, list[Extent]]:
    """Of a packed matrix, in order."""
    keys = [f"{name}.0.{part}" for part in (*PARTS, VALUES)]
    return {key: converted.extents(key) for key in keys if key in converted.file.entries}


def _within(extents: Iterable[Extent], first: int, count: int) -> list[Extent]:
    """Where `count` numbers from number `first` on stand."""
    made = []
    for each in extents:
        size = each.dtype.itemsize
        start, stop = max(first, 0), min(first + count, each.nbytes // size)
        if start < stop:
            made.append(each._replace(start=each.start + start * size, nbytes=(stop - start) * size))
        first -= each.nbytes // size
    return made

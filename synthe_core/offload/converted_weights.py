"""Weights in the form in which they are multiplied, in a file of the cache: for those that a checkpoint has in another.

Packed matrices, dequantised or transformed ones are converted once, one tensor in memory at a time, and read from that
file from then on. It is a safetensors file, named by the digest of the weights, the format and the version of this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.hardware.probe import cache_dir
from synthe_core.quantization.matrix import FloatMatrix, QuantizedMatrix, StackedMatrix
from synthe_core.quantization.packed import PackedMatrix
from synthe_core.storage.atomic import new_file
from synthe_core.storage.tensor_file import Extent, TensorFile, header

VERSION = 1
KEY = "synthe.packed"
WAIT = 600.0  # seconds for another process that converts the same weights
PARTS = "codes", "scales", "offsets"
VALUES = "values"  # of a matrix in 16 bits


class ConvertedWeights:
    """An open file of this kind. matrices: the packed parts of each matrix, as `[rows, columns, factor, format]`."""

    def __init__(self, file: TensorFile) -> None:
        self.file = file
        self.matrices: dict[str, list[Any]] = json.loads(file.metadata[KEY])

    def extents(self, name: str) -> list[Extent]:
        """Of a tensor, or of one part of a matrix."""
        return self.file.extents(name)

    def all_extents(self, name: str) -> list[Extent]:
        """Of a tensor, or of all parts of a matrix."""
        count = len(self.matrices.get(name, ()))
        parts = (*PARTS, VALUES)
        names = [f"{name}.{number}.{part}" for number in range(count) for part in parts] if count else [name]
        return [extent for each in names if each in self.file.entries for extent in self.extents(each)]

    def packed(self, name: str, place: Callable[[str, torch.dtype, tuple[int, ...]], Tensor]) -> QuantizedMatrix:
        """The matrix `name` on tensors that `place` makes, of the names in this file."""
        made: list[QuantizedMatrix] = []
        for number, (rows, columns, factor, stored) in enumerate(self.matrices[name]):
            codes, scales, offsets, values = (
                place(each, self.file.entries[each].dtype, self.file.entries[each].shape)
                if (each := f"{name}.{number}.{part}") in self.file.entries
                else None
                for part in (*PARTS, VALUES)
            )
            if values is not None:
                made.append(FloatMatrix(values))
                continue
            assert codes is not None and scales is not None
            made.append(PackedMatrix(torch.Size((rows, columns)), codes, scales, offsets, factor, stored))
        return made[0] if len(made) == 1 else StackedMatrix(made)


def converted_path(digest: str, format: str | None) -> Path:
    """Where the weights of a digest are, in a format."""
    return cache_dir() / "weights" / f"{digest[:32]}-{format or 'float32'}-{VERSION}.safetensors"


def open_converted(path: Path, names: Iterable[str]) -> ConvertedWeights | None:
    """The file at `path` with all of these tensors; None if it is not there, or not whole."""
    if not path.is_file():
        return None
    try:
        made = ConvertedWeights(TensorFile(path))
    except (InputError, KeyError, ValueError):
        return None
    return made if all(name in made.matrices or name in made.file.entries for name in names) else None


@torch.no_grad()
def convert(path: Path, names: Iterable[str], value: Callable[[str], Tensor | QuantizedMatrix]) -> ConvertedWeights:
    """Writes the tensors or packed matrices that `value` gives for the names, one at a time, and opens the file.

    The header comes last, into room that was left for it: what a matrix is made of is known when it is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(names)
    with new_file(path, wait=WAIT) as partial, partial.open("wb") as file:
        room = 4096 + 1024 * len(names)
        file.seek(room)
        described: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        matrices: dict[str, list[Any]] = {}
        for name in names:
            made = value(name)
            tensors: Mapping[str, Tensor]
            if isinstance(made, Tensor):
                tensors = {name: made.float()}
            else:
                parts = _flat(made)
                matrices[name] = [[*each.shape, getattr(each, "factor", 1.0), each.format] for each in parts]
                tensors = {
                    f"{name}.{number}.{part}": tensor
                    for number, each in enumerate(parts)
                    for part, tensor in _tensors(each).items()
                }
            for key, tensor in tensors.items():
                described[key] = tensor.dtype, tuple(tensor.shape)
                tensor.contiguous().view(-1).view(torch.uint8).numpy().tofile(file)
        text = header(described, {KEY: json.dumps(matrices)})
        assert len(text) <= room, "the header has less room than it needs"
        file.seek(0)
        file.write((room - 8).to_bytes(8, "little") + text[8:] + b" " * (room - len(text)))
    opened = open_converted(path, names)
    assert opened is not None, f"{path} was written and cannot be read"
    return opened


def _tensors(matrix: QuantizedMatrix) -> dict[str, Tensor]:
    """What a packed matrix or one in 16 bits consists of."""
    if isinstance(matrix, FloatMatrix):
        return {VALUES: matrix.values}
    assert isinstance(matrix, PackedMatrix)
    return {part: tensor for part, tensor in zip(PARTS, matrix.tensors, strict=True) if tensor is not None}


def _flat(matrix: QuantizedMatrix) -> list[QuantizedMatrix]:
    return matrix.each if isinstance(matrix, StackedMatrix) else [matrix]

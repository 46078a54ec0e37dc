"""Quantised weights in safetensors files: a matrix NAME is stored as NAME.codes and NAME.scale.

The metadata list the format and shape of each matrix. Reading gives float32, so that every reader of weights can read
quantised ones. torchao's layout was not used: on CPUs its int4 needs kernels that are not built for them, its portable
int4 takes a byte a weight, and it quantises only the weights of linear modules, where ours include embeddings, stacks
of experts and weights of fused operators.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.quantization.codes import decode, encode
from synthe_core.quantization.formats import FORMATS, QuantizationFormat, quantizable
from synthe_core.quantization.matrix import CodedMatrix, QuantizedMatrix
from synthe_core.storage.tensor_file import Extent, TensorFile, write_tensors

METADATA_KEY = "synthe.quantized"


class DequantizedTensors(Mapping[str, Tensor]):
    """The tensors of a file with codes, dequantised. InputError if metadata and codes do not match."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._formats: dict[str, QuantizationFormat] = {}
        self._shapes = {name: entry.shape for name, entry in file.entries.items()}
        try:
            matrices = json.loads(file.metadata[METADATA_KEY])
            for name, (format, shape) in matrices.items():
                self._add_matrix(name, FORMATS[format], tuple(shape))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise InputError(f"{file.name} is damaged: its metadata do not match its codes") from None

    def _add_matrix(self, name: str, format: QuantizationFormat, shape: tuple[int, ...]) -> None:
        codes, scale = self._file.entries[f"{name}.codes"], self._file.entries[f"{name}.scale"]
        expected = _stored(format, shape)
        if [(codes.dtype, codes.shape), (scale.dtype, scale.shape)] != expected:
            raise ValueError(name)
        del self._shapes[f"{name}.codes"], self._shapes[f"{name}.scale"]
        if name in self._shapes:
            raise ValueError(name)
        self._shapes[name] = shape
        self._formats[name] = format

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._formats:
            return self._file[name]
        codes, scale = self._file[f"{name}.codes"], self._file[f"{name}.scale"]
        return decode(codes, scale, self._formats[name], self._shapes[name][-1])

    def extents(self, name: str) -> list[Extent] | None:
        """Where the numbers of a tensor stand; None for a quantised one."""
        return None if name in self._formats else self._file.extents(name)

    def quantized(self, name: str) -> QuantizedMatrix | None:
        """A matrix with the codes that the file has; None for a tensor without, or that is no matrix."""
        if name not in self._formats or len(self._shapes[name]) != 2:
            return None
        codes, scale = (self._file[f"{name}.{part}"].clone() for part in ("codes", "scale"))
        form = self._formats[name]
        return CodedMatrix(next(k for k, v in FORMATS.items() if v is form), form, codes, scale, self._shapes[name][1])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def open_tensors(path: Path, start: int = 0, size: int | None = None, name: str | None = None) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, or of `size` bytes from `start` of a larger file; quantised ones
    dequantised.
    """
    file = TensorFile(path, start, size, name)
    return DequantizedTensors(file) if METADATA_KEY in file.metadata else file


def write_quantized(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, Any], format: str) -> list[str]:
    """Writes `tensors` with every matrix quantised, one tensor in memory at a time; returns the matrices' names.

    shapes: name -> (dtype, shape) of each tensor. InputError for a matrix with a value that is not finite.
    """
    chosen = FORMATS[format]
    matrices = {name: shape for name, (dtype, shape) in shapes.items() if quantizable(dtype, shape)}
    described: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, (dtype, shape) in shapes.items():
        if name in matrices:
            described[f"{name}.codes"], described[f"{name}.scale"] = _stored(chosen, shape)
        else:
            described[name] = dtype, shape

    def parts() -> Iterator[tuple[str, Tensor]]:
        for name in shapes:
            value = tensors[name]
            if name not in matrices:
                yield name, value
                continue
            if not bool(value.isfinite().all()):
                raise InputError(
                    f"{name} has values that are not finite", "no scale can represent them: do not quantise"
                )
            codes, scale = encode(value, chosen)
            yield f"{name}.codes", codes
            yield f"{name}.scale", scale

    metadata = json.dumps({name: [format, list(shape)] for name, shape in matrices.items()}, separators=(",", ":"))
    write_tensors(path, described, parts(), {"format": "pt", METADATA_KEY: metadata})
    return list(matrices)


def _stored(format: QuantizationFormat, shape: tuple[int, ...]) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of the codes and of the scales of a matrix."""
    *rows, columns = shape
    width, dtype = (columns, torch.int8) if format.bits == 8 else (-(-columns // 2), torch.uint8)
    return [(dtype, (*rows, width)), (torch.bfloat16, (*rows, -(-columns // format.group)))]

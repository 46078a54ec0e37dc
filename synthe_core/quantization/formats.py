"""Weights in 8 or 4 bits: codes and a scale for every group of a row, in a safetensors file that says so.

    w ~ scale * code        code int8 in [-127, 127], or two codes in [-8, 7] a byte; scale bfloat16 for each group

A matrix NAME is stored as NAME.codes and NAME.scale; the metadata name its bits, group and shape. It comes back in
float32 when it is read, so whatever reads weights reads these. torchao's own layout was not taken: on CPUs its int4
needs a package of kernels that are not built for them, its portable int4 spends a byte a weight, and it knows only
the weights of linear modules, where ours are also embeddings, stacks of experts and what fused operators read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.storage.tensor_file import TensorFile, write_tensors

KEY = "synthe.quantized"
SMALLEST = 4096  # numbers: what a smaller tensor would save is nothing
NARROWEST = 32  # columns
PIECE = 1 << 22  # numbers that are worked on at a time
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Kind(NamedTuple):
    """`low` to `high` are the codes, `group` how many numbers share a scale. `tries` are the fractions of the largest
    number of a group that the scale is made to reach; each group takes the one with the least squared error."""

    bits: int
    low: int
    high: int
    group: int
    tries: tuple[float, ...]


KINDS = {
    "int8": Kind(8, -127, 127, 128, (1.0,)),
    "int4": Kind(4, -8, 7, 32, (1.0, 0.9375, 0.875, 0.8125, 0.75)),
}


def quantizable(dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is large and wide enough for codes to be worth it."""
    return dtype in FLOATS and len(shape) >= 2 and shape[-1] >= NARROWEST and math.prod(shape) >= SMALLEST


def encode(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Codes [..., columns] (int4: uint8 [..., ceil(columns / 2)]) and scales bfloat16 [..., groups]."""
    rows = weight.reshape(-1, weight.shape[-1])
    step = max(1, PIECE // rows.shape[1])
    parts = [_encode(piece.float(), kind) for piece in rows.split(step)]
    codes, scale = (torch.cat(part).reshape(*weight.shape[:-1], -1) for part in zip(*parts, strict=True))
    return codes, scale


def _encode(rows: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    count, columns = rows.shape
    groups = F.pad(rows, (0, -columns % kind.group)).view(count, -1, kind.group)
    top = groups.abs().amax(-1, keepdim=True)
    best = torch.full_like(top, math.inf)
    scale, codes = torch.zeros_like(top), torch.zeros_like(groups)
    for share in kind.tries:
        tried = (top * (share / kind.high)).bfloat16().float()
        tried_codes = (groups / tried.clamp(min=1e-38)).round().clamp(kind.low, kind.high)
        error = (tried_codes * tried - groups).square().sum(-1, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        codes = torch.where(better, tried_codes, codes)
    codes = codes.view(count, -1)[:, :columns].to(torch.int8)
    if kind.bits == 4:
        codes = F.pad(codes, (0, columns % 2)).view(torch.uint8) & 15
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    return codes, scale.squeeze(-1).bfloat16()


def decode(codes: Tensor, scale: Tensor, kind: Kind, columns: int) -> Tensor:
    """float32 [..., columns]; the inverse of `encode` up to what was rounded."""
    if kind.bits == 4:
        pairs = torch.stack((codes << 4, codes & 0xF0), -1).view(torch.int8) >> 4  # the shift keeps the sign
        codes = pairs.flatten(-2)[..., :columns]
    return codes.float().mul_(scale.float().repeat_interleave(kind.group, -1)[..., :columns])


class Dequantized(Mapping[str, Tensor]):
    """The tensors of a file with codes, as the matrices that they stand for. InputError where the two do not fit."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._kinds: dict[str, Kind] = {}
        self._shapes = {name: entry.shape for name, entry in file.entries.items()}
        try:
            described = json.loads(file.metadata[KEY])
            for name, (kind, shape) in described.items():
                self._describe(name, KINDS[kind], tuple(shape))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise InputError(f"{file.name} is damaged: what it says of its codes does not fit them") from None

    def _describe(self, name: str, kind: Kind, shape: tuple[int, ...]) -> None:
        codes, scale = self._file.entries[f"{name}.codes"], self._file.entries[f"{name}.scale"]
        *rows, columns = shape
        expected = (torch.int8, columns) if kind.bits == 8 else (torch.uint8, -(-columns // 2))
        groups = (torch.bfloat16, (*rows, -(-columns // kind.group)))
        if (codes.dtype, codes.shape) != (expected[0], (*rows, expected[1])) or (scale.dtype, scale.shape) != groups:
            raise ValueError(name)
        del self._shapes[f"{name}.codes"], self._shapes[f"{name}.scale"]
        if name in self._shapes:
            raise ValueError(name)
        self._shapes[name] = shape
        self._kinds[name] = kind

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._kinds:
            return self._file[name]
        codes, scale = self._file[f"{name}.codes"], self._file[f"{name}.scale"]
        return decode(codes, scale, self._kinds[name], self._shapes[name][-1])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def open_tensors(path: Path, start: int = 0, size: int | None = None, name: str | None = None) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, or of a stretch of a larger file; codes come back as numbers."""
    file = TensorFile(path, start, size, name)
    return Dequantized(file) if KEY in file.metadata else file


def write_quantized(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, Any], kind: str) -> list[str]:
    """Writes `tensors` (name -> value, one in memory at a time) with every matrix in codes; gives the matrices' names.

    shapes: name -> (dtype, shape) of each. InputError for a matrix with a value that is not finite.
    """
    chosen = KINDS[kind]
    matrices = {name: shape for name, (dtype, shape) in shapes.items() if quantizable(dtype, shape)}
    described: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, (dtype, shape) in shapes.items():
        if name not in matrices:
            described[name] = dtype, shape
            continue
        *rows, columns = shape
        width = columns if chosen.bits == 8 else -(-columns // 2)
        described[f"{name}.codes"] = (torch.int8 if chosen.bits == 8 else torch.uint8), (*rows, width)
        described[f"{name}.scale"] = torch.bfloat16, (*rows, -(-columns // chosen.group))

    def parts() -> Iterator[tuple[str, Tensor]]:
        for name in shapes:
            value = tensors[name]
            if name not in matrices:
                yield name, value
                continue
            if not bool(value.isfinite().all()):
                raise InputError(f"{name} has values that are not finite", "no scale can reach them: do not quantise")
            codes, scale = encode(value, chosen)
            yield f"{name}.codes", codes
            yield f"{name}.scale", scale

    about = {name: [kind, list(shape)] for name, shape in matrices.items()}
    write_tensors(path, described, parts(), {"format": "pt", KEY: json.dumps(about, separators=(",", ":"))})
    return list(matrices)

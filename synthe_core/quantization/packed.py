"""Quantised matrices in one layout, from which products are computed without making floats of the codes.

    w = factor (s_b c + o_b)        for each block b of 32 columns of a row

c: 4 bits, unsigned, or int8. s and o: float16; `factor` is a power of two that brings them into float16's range, so
that scales that a file has in float16 stay as they are. Eight rows stand together: four columns of each of them are 32
bytes in a row, for one load. Of codes of 4 bits the low half of a byte is of columns 0 to 15 of its block, the high
half of columns 16 to 31.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.quantization.ggml import Groups
from synthe_core.quantization.matrix import (
    AsymmetricMatrix,
    BlockMatrix,
    CodedMatrix,
    FloatMatrix,
    QuantizedMatrix,
    StackedMatrix,
)

BLOCK = 32
LANES = 8
LARGEST_SCALE = 4096.0  # float16 keeps 11 bits from 2^-14 on: scales 2^26 times smaller are still as they were
NIBBLES = ("Q4_0", "Q4_1", "Q4_K", "int4", "int4_asymmetric")

CENTRED = ("Q4_0", "int4")
"""Of these with signed codes in the file: each offset is -8 times its scale."""
WITHOUT = ("Q2_K",)
"""Formats with an offset for each 16 columns."""
GROUPED = (BlockMatrix, CodedMatrix, AsymmetricMatrix)
HALVES = (torch.bfloat16, torch.float16)


class PackedMatrix(QuantizedMatrix):
    """A matrix [rows, columns] in that layout, of G groups of eight rows and B blocks of columns.

    codes: uint8 [G, B, 4, 8, 4] for 4 bits, int8 [G, B, 8, 8, 4] for 8. scales: float16 [G, B, parts, 8]; with two
    parts each 16 columns have their own. offsets: float16 [G, B, 8] or None. Rows that fill up the last group and
    columns that fill up the last block are never read.
    """

    def __init__(
        self, shape: torch.Size, codes: Tensor, scales: Tensor, offsets: Tensor | None, factor: float, stored: str
    ) -> None:
        super().__init__(shape[0], shape[1], codes=codes, scales=scales)
        self.register_buffer("offsets", offsets, persistent=False)
        self.factor, self._stored = factor, stored
        self.bits = 4 if codes.dtype == torch.uint8 else 8

    @property
    def format(self) -> str:
        return self._stored

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, scales and offsets."""
        codes, scales = self._buffers["codes"], self._buffers["scales"]
        assert codes is not None and scales is not None
        return codes, scales, self._buffers.get("offsets")

    def rows(self, index: slice | Tensor) -> Tensor:
        if isinstance(index, slice):
            index = torch.arange(*index.indices(self.shape[0]), device=self.device)
        codes, scales, offsets = self.tensors
        group, row = index // LANES, index % LANES
        part = codes[group, :, :, row]  # [r, B, 4 or 8, 4]
        if self.bits == 4:
            part = torch.cat([part & 15, part >> 4], 2)
        scale = scales[group, :, :, row].float()  # [r, B, parts]
        is_centred = self._stored in CENTRED
        part = part.float() - 8 if is_centred else part.float()  # zeros have the signs that the file's have
        values = part.view(*scale.shape, -1).mul_(scale[..., None]).flatten(2)
        if offsets is not None and not is_centred:
            values += offsets[group, :, row].float()[..., None]
        return values.flatten(1)[:, : self.shape[1]].mul_(self.factor)


def packed(matrix: QuantizedMatrix) -> QuantizedMatrix:
    """The matrix in that layout, a stack of them, or as it is if its format has no such layout."""
    if isinstance(matrix, StackedMatrix):
        return StackedMatrix([packed(each) for each in matrix.each])
    if not is_packable(matrix):
        return matrix
    assert isinstance(matrix, GROUPED)
    parts = [
        _arranged(matrix.groups(part), matrix.shape[1], matrix.format in NIBBLES)
        for part in matrix.parts(multiple=LANES)
    ]
    codes, scales, offsets = (None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True))
    assert codes is not None and scales is not None
    largest = max(float(each.abs().max()) for each in (scales, offsets) if each is not None)
    is_scaled = 0 < largest < math.inf
    factor = 2.0 ** math.floor(math.log2(largest / LARGEST_SCALE)) if is_scaled else 1.0
    half = None if offsets is None else (offsets / factor).half()
    return PackedMatrix(matrix.shape, codes, (scales / factor).half(), half, factor, matrix.format)


def is_packable(matrix: QuantizedMatrix) -> bool:
    """Whether its format has that layout: codes times scales, for each 32 or 16 columns."""
    if isinstance(matrix, StackedMatrix):
        return any(map(is_packable, matrix.each))
    return isinstance(matrix, GROUPED) and matrix.format not in WITHOUT


def has_products(matrix: QuantizedMatrix, device: str = "cpu") -> bool:
    """Whether products are computed of what is in memory: all of it has that layout, or is floats of 16 bits. On CUDA:
    whether it is floats of 16 bits, or codes of 8 or 4 with a scale a group, as they are stored."""
    if device == "cuda":
        return isinstance(matrix, CodedMatrix) or (isinstance(matrix, FloatMatrix) and matrix.values.dtype in HALVES)
    if isinstance(matrix, StackedMatrix):
        return all(map(has_products, matrix.each))
    return isinstance(matrix, PackedMatrix) or (isinstance(matrix, FloatMatrix) and matrix.values.dtype in HALVES)


def _arranged(groups: Groups, columns: int, is_nibble: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, float32 scales and offsets in the order of the layout, of R rows in groups of 16, 32 or 32 n columns."""
    codes, scales, offsets = groups
    if is_nibble and offsets is None:
        codes, offsets = codes + 8, scales * -8.0
    size, count = codes.shape[2], -(-columns // BLOCK)
    codes = codes.flatten(1)[:, : count * BLOCK]
    codes = F.pad(codes, (0, count * BLOCK - codes.shape[1], 0, -len(codes) % LANES))
    codes = codes.view(-1, LANES, count, 8, 4).permute(0, 2, 3, 1, 4)  # [G, B, 8, 8, 4]
    if is_nibble:
        codes = codes.to(torch.uint8)
        codes = codes[:, :, :4] | codes[:, :, 4:] << 4
    parts = max(1, BLOCK // size)
    repeats = max(1, size // BLOCK)
    offsets = None if offsets is None else _by_block(offsets, repeats, count)
    scales = _by_block(scales, repeats, count * parts).view(-1, LANES, count, parts).permute(0, 2, 3, 1).contiguous()
    if offsets is not None:
        offsets = offsets.view(-1, LANES, count).permute(0, 2, 1).contiguous()
    return (codes if is_nibble else codes.to(torch.int8)).contiguous(), scales, offsets


def _by_block(values: Tensor, repeats: int, count: int) -> Tensor:
    """Scales or offsets [R, G, 1] of groups as those of blocks, or of halves of them, float32 [8 n, count]."""
    values = values.float().repeat_interleave(repeats, 1)[:, :count, 0]
    return F.pad(values, (0, count - values.shape[1], 0, -len(values) % LANES))

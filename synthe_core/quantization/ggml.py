"""The block formats of GGUF files: a tensor's numbers in blocks of 32 or 256, each with its scales.

    w = scale * code + offset

Codes are integers of 2 to 8 bits, with a scale (and in some formats an offset) for each group of a block. In the K
formats scales and offsets are integers themselves, times a float16 of the block. Layouts: ggml (ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LARGE_BLOCK = 256  # numbers in a block of the K formats
CHUNK = 1 << 20  # numbers that are unpacked at a time
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Groups(NamedTuple):
    """Unpacked blocks: int8 codes [N, G, S] of G groups, float32 scales [N, G, 1], and offsets like them or None."""

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None = None

    def dequantize(self) -> Tensor:
        """float32 [N, G * S]."""
        values = self.codes.float().mul_(self.scales)
        return (values if self.offsets is None else values.add_(self.offsets)).flatten(1)


class BlockFormat(NamedTuple):
    """`size` numbers in `nbytes` bytes; `unpack` takes blocks uint8 [N, nbytes] apart."""

    name: str
    size: int
    nbytes: int
    unpack: Callable[[Tensor], Groups]

    def dequantize(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        """float32 numbers of the blocks in `data`, uint8 [...] of any shape."""
        blocks = data.reshape(-1, self.nbytes)
        result = torch.empty(len(blocks), self.size, device=data.device)
        step = max(1, CHUNK // self.size)
        for start in range(0, len(blocks), step):
            result[start : start + step] = self.unpack(blocks[start : start + step]).dequantize()
        return result.view(shape)


def _half(data: Tensor) -> Tensor:
    """float16 numbers [N, n] of bytes [N, 2 n], as float32 [N, n]."""
    return data.contiguous().view(torch.float16).float()


def _nibbles(data: Tensor, stride: int) -> Tensor:
    """Of each `stride` bytes the low halves, then the high ones: [N, n] -> [N, 2 n]."""
    parts = data.unflatten(1, (-1, stride))
    return torch.stack([parts & 15, parts >> 4], 2).flatten(1)


def _fields(data: Tensor, stride: int, bits: int) -> Tensor:
    """Of each `stride` bytes their fields of `bits` bits, lowest first: [N, n] -> [N, n * 8 / bits]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)[:, None]
    return ((data.unflatten(1, (-1, 1, stride)) >> shifts) & ((1 << bits) - 1)).flatten(1)


def _signed(codes: Tensor, middle: int) -> Tensor:
    return codes.to(torch.int8) - middle


def _grouped(codes: Tensor, size: int) -> Tensor:
    return codes.unflatten(1, (-1, size))


def _fifth_bits(data: Tensor) -> Tensor:
    """The 32 bits of 4 bytes, lowest first, each as 16: [N, 4] -> [N, 32]."""
    return _fields(data, 1, 1) << 4


def _q4_0(b: Tensor) -> Groups:
    return Groups(_signed(_nibbles(b[:, 2:], 16), 8)[:, None], _half(b[:, :2])[:, None])


def _q4_1(b: Tensor) -> Groups:
    return Groups(_nibbles(b[:, 4:], 16)[:, None], _half(b[:, :2])[:, None], _half(b[:, 2:4])[:, None])


def _q5_0(b: Tensor) -> Groups:
    codes = _nibbles(b[:, 6:], 16) | _fifth_bits(b[:, 2:6])
    return Groups(_signed(codes, 16)[:, None], _half(b[:, :2])[:, None])


def _q5_1(b: Tensor) -> Groups:
    codes = _nibbles(b[:, 8:], 16) | _fifth_bits(b[:, 4:8])
    return Groups(codes[:, None], _half(b[:, :2])[:, None], _half(b[:, 2:4])[:, None])


def _q8_0(b: Tensor) -> Groups:
    return Groups(b[:, 2:].view(torch.int8)[:, None], _half(b[:, :2])[:, None])


def _q2_k(b: Tensor) -> Groups:
    scales, codes = b[:, :16], _fields(b[:, 16:80], 32, 2)
    d, least = _half(b[:, 80:82]), _half(b[:, 82:84])
    return Groups(
        _grouped(codes, 16), (d * (scales & 15).float())[..., None], -(least * (scales >> 4).float())[..., None]
    )


def _q3_k(b: Tensor) -> Groups:
    """A clear bit of the mask subtracts 4. Scales have 6 bits: 4 in the first 8 bytes, 2 in the last 4."""
    codes = _fields(b[:, 32:96], 32, 2).to(torch.int8) - ((_fields(b[:, :32], 32, 1) ^ 1) << 2).to(torch.int8)
    low, high = _nibbles(b[:, 96:104], 8), _fields(b[:, 104:108], 4, 2)
    scales = _signed(low | (high << 4), 32).float()
    return Groups(_grouped(codes, 16), (_half(b[:, 108:110]) * scales)[..., None])


def _scales_and_offsets(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets [N, 8] of Q4_K and Q5_K: 6 bits each in 12 bytes, times the two float16 of the block."""
    d, least = _half(b[:, :2]), _half(b[:, 2:4])
    first, second, last = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat([first & 63, (last & 15) | ((first >> 2) & 48)], 1)
    offsets = torch.cat([second & 63, (last >> 4) | ((second >> 2) & 48)], 1)
    return (d * scales.float())[..., None], -(least * offsets.float())[..., None]


def _q4_k(b: Tensor) -> Groups:
    return Groups(_grouped(_nibbles(b[:, 16:], 32), 32), *_scales_and_offsets(b))


def _q5_k(b: Tensor) -> Groups:
    codes = _nibbles(b[:, 48:], 32) | (_fields(b[:, 16:48], 32, 1) << 4)
    return Groups(_grouped(codes, 32), *_scales_and_offsets(b))


def _q6_k(b: Tensor) -> Groups:
    codes = _nibbles(b[:, :128], 64) | (_fields(b[:, 128:192], 32, 2) << 4)
    scales = _half(b[:, 208:210]) * b[:, 192:208].view(torch.int8).float()
    return Groups(_grouped(_signed(codes, 32), 16), scales[..., None])


def _iq4(codes: Tensor) -> Tensor:
    return torch.tensor(IQ4_VALUES, dtype=torch.int8, device=codes.device)[codes.int()]


def _iq4_nl(b: Tensor) -> Groups:
    return Groups(_iq4(_nibbles(b[:, 2:], 16))[:, None], _half(b[:, :2])[:, None])


def _iq4_xs(b: Tensor) -> Groups:
    high = _fields(b[:, 2:4], 1, 2)
    low = _nibbles(b[:, 4:8], 1)
    scales = _half(b[:, :2]) * _signed(low | (high << 4), 32).float()
    return Groups(_grouped(_iq4(_nibbles(b[:, 8:], 16)), 32), scales[..., None])


BLOCK_FORMATS = {
    2: BlockFormat("Q4_0", 32, 18, _q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1),
    6: BlockFormat("Q5_0", 32, 22, _q5_0),
    7: BlockFormat("Q5_1", 32, 24, _q5_1),
    8: BlockFormat("Q8_0", 32, 34, _q8_0),
    10: BlockFormat("Q2_K", LARGE_BLOCK, 84, _q2_k),
    11: BlockFormat("Q3_K", LARGE_BLOCK, 110, _q3_k),
    12: BlockFormat("Q4_K", LARGE_BLOCK, 144, _q4_k),
    13: BlockFormat("Q5_K", LARGE_BLOCK, 176, _q5_k),
    14: BlockFormat("Q6_K", LARGE_BLOCK, 210, _q6_k),
    20: BlockFormat("IQ4_NL", 32, 18, _iq4_nl),
    23: BlockFormat("IQ4_XS", LARGE_BLOCK, 136, _iq4_xs),
}
"""By the number that a GGUF file has for the type."""
PLAIN_FORMATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16, 28: torch.float64}
"""Types without blocks."""

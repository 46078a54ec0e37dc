"""NF4: four-bit codes whose 16 values are quantiles of a normal distribution (Dettmers et al. 2023, QLoRA).

    w ~ m table[code]        m the largest magnitude of 64 consecutive columns of a row

With double quantisation the magnitudes are quantised too: m ~ μ + s c, with c int8, the mean μ of all magnitudes of the
matrix, and a scale s for each 256 of them, in the order of rows. The paper has 8-bit floats for c; int8 has the smaller
error for numbers around a mean. Bits a weight: 4.5, and 4.13 with double quantisation.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
MAGNITUDE_BLOCK = 256
TABLE = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Appendix E of the paper."""
MIDDLES = tuple((low + high) / 2 for low, high in pairwise(TABLE))


class Magnitudes(NamedTuple):
    """Quantised magnitudes: codes int8 [R, G], scales float32 [ceil(R G / 256)], the mean float32 []."""

    codes: Tensor
    scales: Tensor
    mean: Tensor

    def rows(self, index: slice | Tensor) -> Tensor:
        """float32 [r, G] of some rows."""
        count, groups = self.codes.shape
        rows = torch.arange(count, device=self.codes.device)[index]
        places = rows[:, None] * groups + torch.arange(groups, device=rows.device)
        scales = self.scales[torch.div(places, MAGNITUDE_BLOCK, rounding_mode="floor")]
        return self.codes[index].float().mul_(scales).add_(self.mean)


def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [R, ceil(columns / 2)], the first of a byte in its low half, and magnitudes float32 [R, G]."""
    count, columns = rows.shape
    groups = F.pad(rows.float(), (0, -columns % BLOCK)).view(count, -1, BLOCK)
    magnitudes = groups.abs().amax(-1)
    scaled = groups / torch.where(magnitudes == 0, 1.0, magnitudes)[..., None]
    codes = torch.bucketize(scaled, torch.tensor(MIDDLES, device=rows.device), out_int32=True).to(torch.uint8)
    codes = F.pad(codes.view(count, -1)[:, :columns], (0, columns % 2))
    return codes[:, 0::2] | codes[:, 1::2] << 4, magnitudes


def encode_magnitudes(magnitudes: Tensor) -> Magnitudes:
    """Double quantisation of magnitudes [R, G]."""
    mean = magnitudes.mean()
    flat = (magnitudes - mean).flatten()
    blocks = F.pad(flat, (0, -len(flat) % MAGNITUDE_BLOCK)).view(-1, MAGNITUDE_BLOCK)
    scales = blocks.abs().amax(1) / 127
    codes = (blocks / torch.where(scales == 0, 1.0, scales)[:, None]).round().to(torch.int8)
    return Magnitudes(codes.flatten()[: len(flat)].view(magnitudes.shape), scales, mean)


def pairs(device: torch.device) -> Tensor:
    """The two numbers of every byte, float32 [256, 2]."""
    table, byte = torch.tensor(TABLE, device=device), torch.arange(256, device=device)
    return torch.stack([table[byte & 15], table[byte >> 4]], 1)


def decode(codes: Tensor, magnitudes: Tensor, columns: int) -> Tensor:
    """float32 [R, columns]: the inverse of `encode` up to rounding; the products are those of float32."""
    values = F.embedding(codes.int(), pairs(codes.device)).view(len(codes), -1)
    if columns % BLOCK == 0:
        return values.view(len(codes), -1, BLOCK).mul_(magnitudes[..., None]).view(len(codes), columns)
    return values[:, :columns].mul_(magnitudes.repeat_interleave(BLOCK, -1)[:, :columns])

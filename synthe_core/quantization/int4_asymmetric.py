"""Four-bit codes from the least number of a group to its largest.

    w ~ s code + o        code in [0, 15]; s and o float16 for each 32 consecutive columns of a row

Five bits a weight. Matrices that were in blocks of GGUF's Q4_1 before have nearly the same numbers again: their groups
are the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32
LEVELS = 15


def encode(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [R, ceil(columns / 2)], the first of a byte in its low half; scales and offsets float16 [R, G]."""
    count, columns = rows.shape
    padded = F.pad(rows.float()[:, None], (0, -columns % GROUP), mode="replicate")[:, 0]  # no new extremes
    groups = padded.view(count, -1, GROUP)
    least, largest = groups.aminmax(dim=-1, keepdim=True)
    scales, offsets = ((largest - least) / LEVELS).half(), least.half()
    steps = torch.where(scales == 0, 1.0, scales.float())
    codes = ((groups - offsets.float()) / steps).round().clamp(0, LEVELS).to(torch.uint8)
    codes = F.pad(codes.view(count, -1)[:, :columns], (0, columns % 2))
    return codes[:, 0::2] | codes[:, 1::2] << 4, scales[..., 0], offsets[..., 0]


def decode(codes: Tensor, scales: Tensor, offsets: Tensor, columns: int) -> Tensor:
    """float32 [R, columns]: the inverse of `encode` up to rounding."""
    byte = torch.arange(256, device=codes.device)
    pairs = torch.stack([byte & LEVELS, byte >> 4], 1).float()
    values = F.embedding(codes.int(), pairs).flatten(1)
    values = F.pad(values, (0, scales.shape[1] * GROUP - values.shape[1])).unflatten(1, (-1, GROUP))
    return values.mul_(scales.float()[..., None]).add_(offsets.float()[..., None]).flatten(1)[:, :columns]


def unpacked(codes: Tensor, columns: int) -> Tensor:
    """The codes as they were before two of them shared a byte: uint8 [R, columns]."""
    return torch.stack([codes & LEVELS, codes >> 4], 2).flatten(1)[:, :columns]

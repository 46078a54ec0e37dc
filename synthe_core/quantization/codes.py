"""Encoding weights as codes and scales, and decoding them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.quantization.formats import QuantizationFormat

CHUNK = 1 << 20  # numbers processed at a time


def encode(weight: Tensor, format: QuantizationFormat) -> tuple[Tensor, Tensor]:
    """Codes [..., columns] (int4: uint8 [..., ceil(columns / 2)]) and scales bfloat16 [..., groups]."""
    rows = weight.reshape(-1, weight.shape[-1])
    chunk = max(1, CHUNK // rows.shape[1])
    parts = [_encode_rows(part.float(), format) for part in rows.split(chunk)]
    codes, scale = (torch.cat(part).reshape(*weight.shape[:-1], -1) for part in zip(*parts, strict=True))
    return codes, scale


def decode(codes: Tensor, scale: Tensor, format: QuantizationFormat, columns: int) -> Tensor:
    """float32 [..., columns]: the inverse of `encode` up to rounding."""
    codes, scale = unpacked(codes, format, columns), scale.float()
    if columns % format.group == 0:
        return codes.float().unflatten(-1, (-1, format.group)).mul_(scale[..., None]).flatten(-2)
    return codes.float().mul_(scale.repeat_interleave(format.group, -1)[..., :columns])


def unpacked(codes: Tensor, format: QuantizationFormat, columns: int) -> Tensor:
    """The codes int8 [..., columns], each in a byte of its own."""
    if format.bits == 8:
        return codes
    pairs = torch.stack((codes << 4, codes & 0xF0), -1).view(torch.int8) >> 4  # the arithmetic shift keeps the sign
    return pairs.flatten(-2)[..., :columns]


def _encode_rows(rows: Tensor, format: QuantizationFormat) -> tuple[Tensor, Tensor]:
    count, columns = rows.shape
    groups = F.pad(rows, (0, -columns % format.group)).view(count, -1, format.group)
    largest = groups.abs().amax(-1, keepdim=True)
    least_error = torch.full_like(largest, math.inf)
    scale, codes = torch.zeros_like(largest), torch.zeros_like(groups)
    for share in format.scale_shares:
        candidate = (largest * (share / format.high)).bfloat16().float()
        candidate_codes = (groups / candidate.clamp(min=1e-38)).round().clamp(format.low, format.high)
        error = (candidate_codes * candidate - groups).square().sum(-1, keepdim=True)
        better = error < least_error
        least_error, scale = torch.where(better, error, least_error), torch.where(better, candidate, scale)
        codes = torch.where(better, candidate_codes, codes)
    codes = codes.view(count, -1)[:, :columns].to(torch.int8)
    if format.bits == 4:
        codes = F.pad(codes, (0, columns % 2)).view(torch.uint8) & 15
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    return codes, scale.squeeze(-1).bfloat16()

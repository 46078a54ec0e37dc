"""Quantising to the block formats of GGUF files. `ggml` has the layouts and the way back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from synthe_core.quantization.ggml import BLOCK_FORMATS, CHUNK

SUPER = 8  # groups of a Q4_K block, of 32 numbers each
SMALL = 1e-30


def quantize(values: Tensor, kind: int) -> Tensor:
    """Blocks uint8 [N, nbytes] of float numbers whose last dimension is a multiple of the block's size.

    kind: the number of the format, one of `QUANTIZERS`.
    """
    form, encode = BLOCK_FORMATS[kind], QUANTIZERS[kind]
    rows = values.detach().reshape(-1, form.size)
    blocks = torch.empty(len(rows), form.nbytes, dtype=torch.uint8)
    step = max(1, CHUNK // 8 // form.size)
    for start in range(0, len(rows), step):
        blocks[start : start + step] = encode(rows[start : start + step].float())
    return blocks


def _half_bytes(values: Tensor) -> Tensor:
    """float32 [N, n] as the bytes of float16 [N, 2 n]."""
    return values.to(torch.float16).contiguous().view(torch.uint8)


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values == 0, 0.0, 1 / values)


def _rounded(values: Tensor) -> Tensor:
    """Half away from zero, as C rounds."""
    whole = values.abs().floor()
    return values.sign() * (whole + (values.abs() - whole >= 0.5))


def _pack_nibbles(codes: Tensor, stride: int) -> Tensor:
    """uint8 codes below 16, [N, 2 n] -> [N, n]: of each `2 stride` the first half low, the second high."""
    low, high = codes.unflatten(1, (-1, 2, stride)).unbind(2)
    return (low | (high << 4)).flatten(1)


def _pack_fields(codes: Tensor, stride: int, bits: int) -> Tensor:
    """uint8 codes of `bits` bits, [N, n * 8 / bits] -> [N, n]."""
    parts = codes.unflatten(1, (-1, 8 // bits, stride)).unbind(2)
    packed = parts[0].clone()
    for i, part in enumerate(parts[1:], 1):
        packed |= part << (i * bits)
    return packed.flatten(1)


def _q8_0(x: Tensor) -> Tensor:
    scale = x.abs().amax(1, keepdim=True) / 127
    codes = _rounded(x * _inverse(scale)).to(torch.int8)
    return torch.cat([_half_bytes(scale), codes.view(torch.uint8)], 1)


def _q4_0(x: Tensor) -> Tensor:
    """The number that is farthest from zero becomes -8."""
    scale = x.gather(1, x.abs().argmax(1, keepdim=True)) / -8
    codes = (x.double() * _inverse(scale).double() + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    return torch.cat([_half_bytes(scale), _pack_nibbles(codes, 16)], 1)


def _fit_offset(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scales and offsets [N, G, 1], both at least 0, with x [N, G, S] ~ scale * code - offset.

    The error is weighted towards large numbers; each candidate for the scale is refined by least squares.
    """
    weight = x.abs() + x.square().mean(-1, keepdim=True).sqrt()
    least = x.amin(-1, keepdim=True).clamp_max(0)
    span = (x.amax(-1, keepdim=True) - least).clamp_min(SMALL)
    best_scale, best_offset = span / levels, -least

    def error_of(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        return (weight * (scale * codes - offset - x).square()).sum(-1, keepdim=True)

    best_error = error_of(((x - least) / best_scale).round(), best_scale, best_offset)
    for step in range(22):
        codes = ((levels - 1 + 0.1 * step) / span * (x - least)).round().clamp(0, levels)
        scale, offset = _least_squares(x, codes, weight)
        error = error_of(codes, scale, offset)
        better = error < best_error
        best_scale, best_offset = torch.where(better, scale, best_scale), torch.where(better, offset, best_offset)
        best_error = torch.where(better, error, best_error)
    return best_scale, best_offset


def _least_squares(x: Tensor, codes: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and offset >= 0 that minimise the weighted error for these codes."""
    total = weight.sum(-1, keepdim=True)
    sum_c, sum_x = ((weight * t).sum(-1, keepdim=True) for t in (codes, x))
    sum_cc, sum_cx = ((weight * codes * t).sum(-1, keepdim=True) for t in (codes, x))
    determinant = total * sum_cc - sum_c * sum_c
    scale = (total * sum_cx - sum_c * sum_x) * _inverse(determinant)
    offset = -(sum_cc * sum_x - sum_c * sum_cx) * _inverse(determinant)
    through_zero = (sum_cx * _inverse(sum_cc)).clamp_min(0)
    negative = (offset < 0) | (scale <= 0)
    return torch.where(negative, through_zero, scale), torch.where(negative, 0.0, offset)


def _q4_k(x: Tensor) -> Tensor:
    groups = x.unflatten(1, (SUPER, -1))
    scale, offset = (t[..., 0] for t in _fit_offset(groups, 15))
    d, least = (t.amax(1, keepdim=True) / 63 for t in (scale, offset))
    scales, offsets = ((t * _inverse(m)).round().clamp(0, 63) for t, m in ((scale, d), (offset, least)))
    d, least = (t.to(torch.float16).float() for t in (d, least))
    step, shift = (d * scales)[..., None], (least * offsets)[..., None]
    codes = ((groups + shift) * _inverse(step)).round().clamp(0, 15).to(torch.uint8)
    s, o = scales.to(torch.uint8), offsets.to(torch.uint8)
    packed = torch.cat(
        [
            s[:, :4] | ((s[:, 4:] >> 4) << 6),
            o[:, :4] | ((o[:, 4:] >> 4) << 6),
            (s[:, 4:] & 15) | ((o[:, 4:] & 15) << 4),
        ],
        1,
    )
    return torch.cat([_half_bytes(d), _half_bytes(least), packed, _pack_nibbles(codes.flatten(1), 32)], 1)


def _fit(x: Tensor, levels: int) -> Tensor:
    """Scales [N, G, 1] of either sign with x [N, G, S] ~ scale * code, code in [-levels, levels), weighted by x²."""
    weight = x.square()
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    best, best_gain = torch.zeros_like(largest), torch.full_like(largest, -1)
    for step in range(-9, 10):
        codes = (-(levels + 0.1 * step) * _inverse(largest) * x).round().clamp(-levels, levels - 1)
        products, squares = ((weight * codes * t).sum(-1, keepdim=True) for t in (x, codes))
        gain = products.square() * _inverse(squares)
        better = gain > best_gain
        best, best_gain = torch.where(better, products * _inverse(squares), best), torch.where(better, gain, best_gain)
    return best


def _q6_k(x: Tensor) -> Tensor:
    groups = x.unflatten(1, (16, 16))
    scale = _fit(groups, 32)[..., 0]
    largest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    d = largest / -128
    scales = (scale * _inverse(d)).round().clamp(-128, 127)
    d = d.to(torch.float16).float()
    codes = (groups * _inverse((d * scales)[..., None])).round().clamp(-32, 31) + 32
    codes = codes.to(torch.uint8).flatten(1)
    low, high = _pack_nibbles(codes & 15, 64), _pack_fields(codes >> 4, 32, 2)
    return torch.cat([low, high, scales.to(torch.int8).view(torch.uint8), _half_bytes(d)], 1)


QUANTIZERS: dict[int, Callable[[Tensor], Tensor]] = {2: _q4_0, 8: _q8_0, 12: _q4_k, 14: _q6_k}
"""By the number of a format."""

"""The long convolution in T log² L operations on any device, by FFTs in which no output depends on a later input.

One FFT over the whole sequence would do with fewer operations, but its rounding errors spread: every output would
depend, by some 1e-7 of it, on inputs that come after. Here time is halved again and again. At every level the first
half of a pair of blocks adds to the second half, all pairs in one call; what is left, blocks of C tokens, are exact
triangular matrices. So nothing at all flows from the future into the past, in outputs and in gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, Slower, require_float
from synthe_core.ops.long_conv.reference import long_conv
from synthe_core.ops.short_conv import last_inputs

CHUNK = 64  # tokens of the smallest blocks
FEW = 8  # tokens up to which the sum itself is faster


@long_conv.kernel("fft", rank=10, tolerance=1e-5)
def fft(u: Tensor, taps: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Blocks and FFTs; only u, taps and the state are saved for the backward pass."""
    require_float("u", u)
    return FFTConv.apply(u, taps, state), last_inputs(u, state, taps.shape[1])


@fft.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return None if call.time > FEW else Slower(f"at most {FEW} tokens: the sum itself is quicker")


class FFTConv(torch.autograd.Function):
    """The convolution with its gradient: with respect to the inputs it is the same one, backwards in time."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, taps: Tensor, state: Tensor | None) -> Tensor:
        ctx.save_for_backward(u, taps, state)
        past = None if state is None else state.permute(2, 0, 1)
        return convolve(u.permute(2, 0, 1), taps, past).permute(1, 2, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, taps, state = ctx.saved_tensors
        reach = taps.shape[1] - 1
        slope = grad.permute(2, 0, 1)
        u_grad = taps_grad = state_grad = None
        if ctx.needs_input_grad[0]:
            u_grad = convolve(slope.flip(-1), taps, None).flip(-1).permute(1, 2, 0)
        if ctx.needs_input_grad[1]:
            past = u.new_zeros(u.shape[0], reach, u.shape[2]) if state is None else state
            taps_grad = correlate(slope, u.permute(2, 0, 1), past.permute(2, 0, 1))
        if state is not None and ctx.needs_input_grad[2] and reach:
            # Beyond its end the reversed convolution gives the gradient of the tokens before the first.
            late = slope[..., :reach].flip(-1)
            state_grad = carry(late, taps[:, None], reach).flip(-1).permute(1, 2, 0)
        return u_grad, taps_grad, state_grad


def convolve(u: Tensor, taps: Tensor, past: Tensor | None) -> Tensor:
    """y [D, B, T] of u [D, B, T] and the L-1 inputs `past` before it: halves within blocks, then block to block."""
    channels, batch, time = u.shape
    block = CHUNK
    while block < min(time, taps.shape[1] - 1):
        block *= 2
    u = F.pad(u, (0, -time % block)).contiguous()
    y = triangles(u, taps)
    taps = taps[:, None, None]
    half = CHUNK
    while half < block:
        pairs = u.view(channels, batch, -1, 2, half)
        y.view(pairs.shape)[..., 1, :] += carry(pairs[..., 0, :], taps, half)
        half *= 2
    if time > block:
        blocks = u.view(channels, batch, -1, block)
        y.view(blocks.shape)[:, :, 1:] += carry(blocks[:, :, :-1], taps, block)
    if past is not None and past.shape[-1]:
        count = min(time, past.shape[-1])
        y[..., :count] += carry(past, taps[:, 0], count)
    return y[..., :time]


def triangles(u: Tensor, taps: Tensor) -> Tensor:
    """Every block of C tokens by itself: its inputs times the lower triangular matrix of taps[:, i - j]."""
    channels, batch, time = u.shape
    steps = torch.arange(CHUNK, device=u.device)
    lag = steps[:, None] - steps
    near = F.pad(taps[:, :CHUNK], (0, max(0, CHUNK - taps.shape[1])))
    matrices = torch.where(lag >= 0, near[:, lag.clamp_min(0)], 0)
    with torch.autocast(u.device.type, enabled=False):
        return torch.bmm(u.view(channels, -1, CHUNK), matrices.mT).view(channels, batch, time)


def carry(past: Tensor, taps: Tensor, count: int) -> Tensor:
    """What inputs `past` [..., M] add to the `count` outputs that follow them.

    An FFT of M + count points is enough: what it wraps round falls on its first M outputs, which are not used.
    """
    size = _smooth(past.shape[-1] + count)
    spectrum = torch.fft.rfft(past, size) * torch.fft.rfft(taps[..., :size], size)
    return torch.fft.irfft(spectrum, size)[..., past.shape[-1] : past.shape[-1] + count]


def correlate(slope: Tensor, u: Tensor, past: Tensor) -> Tensor:
    """Σ_t slope_t u_{t-j} for every lag j < L [D, L]; slope and u [D, B, T], `past` the L-1 inputs before u.

    In blocks, so that the FFTs stay short: their spectra are added up and transformed back once.
    """
    reach, time = past.shape[-1], u.shape[-1]
    block = min(max(reach, CHUNK), time)
    size = _smooth(block + reach)
    short = -time % block
    history = F.pad(torch.cat([past, u], -1), (0, short)).unfold(-1, block + reach, block)
    slopes = F.pad(slope, (0, short)).unfold(-1, block, block)
    # Index i of the first is token i - reach of the block: lag j is at reach - j.
    product = torch.fft.rfft(history, size) * torch.fft.rfft(slopes, size).conj()
    return torch.fft.irfft(product.sum((1, 2)), size)[..., : reach + 1].flip(-1)


def _smooth(size: int) -> int:
    """The next power of two: the sizes that every FFT library is fastest at."""
    return 1 << (size - 1).bit_length()

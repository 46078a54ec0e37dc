"""The linear scan in about 2 sqrt(T) steps on any device, with its gradient, which is the same scan run backwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, Slower, require_float
from synthe_core.ops.linear_scan.reference import linear_scan

Scan = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@linear_scan.kernel("blocked", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def blocked(decay: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Chunks of sqrt(T) at once, then the state over the chunks."""
    require_float("decay", decay)
    h = AdjointScan.apply(scan, decay, value, state)
    return h, h[:, -1].clone()


@blocked.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return None if call.time > 1 else Slower("a single step: the recurrence itself is one operation")


def scan(decay: Tensor, value: Tensor, state: Tensor | None) -> Tensor:
    """h_t = decay_t h_{t-1} + value_t, without a gradient of its own.

    Time is cut into chunks of C = sqrt(T). All chunks are scanned from zero at once, one step c at a time (the slice
    c::C holds that step of each), together with their products of decays; then the state is carried over the chunks.
    """
    time = value.shape[1]
    chunk = math.isqrt(time - 1) + 1
    h, reach = value.clone(), decay.clone()
    for c in range(1, chunk):
        previous = slice(c - 1, time - 1, chunk)
        h[:, c::chunk].addcmul_(decay[:, c::chunk], h[:, previous])
        reach[:, c::chunk].mul_(reach[:, previous])
    for start in range(0, time, chunk):
        part = slice(start, start + chunk)
        carried = state if start == 0 else h[:, start - 1]
        if carried is not None:
            h[:, part].addcmul_(reach[:, part], carried[:, None])
    return h


def scan_back(forward: Scan, decay: Tensor, value: Tensor) -> Tensor:
    """h_t = decay_{t+1} h_{t+1} + value_t with nothing after the end: the adjoint of the scan, by the same scan."""
    shifted = torch.cat([torch.zeros_like(decay[:, :1]), decay[:, 1:].flip(1)], dim=1)
    return forward(shifted, value.flip(1), None).flip(1)


def previous(h: Tensor, state: Tensor | None) -> Tensor:
    """h_{t-1} at every t."""
    first = torch.zeros_like(h[:, :1]) if state is None else state[:, None]
    return torch.cat([first, h[:, :-1]], dim=1)


class AdjointScan(torch.autograd.Function):
    """Any scan with its gradient by hand: with ḣ_t = g_t + decay_{t+1} ḣ_{t+1},

    d decay_t = ḣ_t h_{t-1},  d value_t = ḣ_t,  d state = decay_0 ḣ_0.
    """

    @staticmethod
    def forward(ctx: Any, forward: Scan, decay: Tensor, value: Tensor, state: Tensor | None) -> Tensor:
        h = forward(decay, value, state)
        ctx.scan = forward
        ctx.save_for_backward(decay, h, state)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        decay, h, state = ctx.saved_tensors
        adjoint = scan_back(ctx.scan, decay, grad)
        state_grad = None if state is None else decay[:, 0] * adjoint[:, 0]
        return None, adjoint * previous(h, state), adjoint, state_grad

"""The selective scan in parallel segments of time, in torch, for any device, with its gradient by hand.

A segment of S tokens is a linear scan of its batch × E × N channels, each with the decay exp(Δ_t A), in about 2 sqrt(S)
steps. Only one segment's states exist at a time; the forward keeps the state before each, and the backward computes the
rest again. No product of decays is ever divided by, so nothing overflows however fast the state forgets.

Going back, with ḣ_t = ẏ_t C_tᵀ + a_{t+1} ḣ_{t+1} and a_t = exp(Δ_t A), every slope follows from ḣ_t and h_{t-1}.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, Slower
from synthe_core.ops.linear_scan.blocked import previous, scan, scan_back
from synthe_core.ops.selective_scan.reference import check, selective_scan

SEGMENT = 64


@selective_scan.kernel("segmented", rank=10, tolerance=1e-5)
def segmented(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Torch: segments of 64 tokens, each in about 16 steps; at most batch × 64 × E × N numbers at a time."""
    check(x, delta, A, B, C, D, state)
    with torch.autocast(x.device.type, enabled=False):
        return _Segmented.apply(x, delta, A, B, C, D, state)


@segmented.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return None if call.time > 1 else Slower("a single step: the recurrence itself is a few operations")


class _Segmented(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(x.shape[0], *A.shape) if state is None else state
        y, starts = D * x, []
        for start in range(0, x.shape[1], SEGMENT):
            now = slice(start, start + SEGMENT)
            starts.append(h)
            history = _states(x[:, now], delta[:, now], A, B[:, now], h)[1]
            y[:, now] += torch.einsum("bten,btn->bte", history, C[:, now])
            h = history[:, -1].clone()
        ctx.save_for_backward(x, delta, A, B, C, D, *(starts if any(ctx.needs_input_grad) else ()))
        return y, h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor, h_grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(y_grad.device.type, enabled=False):
            return _gradients(y_grad, h_grad, *ctx.saved_tensors, wants_state=ctx.needs_input_grad[-1])


def _states(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The decays and the states of a segment [batch, S, E, N]."""
    decay = (delta[..., None] * A).exp_()
    return decay, scan(decay, (delta * x)[..., None] * B[:, :, None], first)


def _gradients(
    y_grad: Tensor,
    h_grad: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *starts: Tensor,
    wants_state: bool,
) -> tuple[Tensor | None, ...]:
    x_grad, delta_grad = D * y_grad, torch.empty_like(delta)
    A_grad, B_grad, C_grad = torch.zeros_like(A), torch.empty_like(B), torch.empty_like(C)
    D_grad = (y_grad * x).sum((0, 1))
    for n in reversed(range(len(starts))):
        now = slice(n * SEGMENT, (n + 1) * SEGMENT)
        u, step, slope = x[:, now], delta[:, now], y_grad[:, now]
        decay, h = _states(u, step, A, B[:, now], starts[n])
        C_grad[:, now] = torch.einsum("bten,bte->btn", h, slope)
        seed = slope[..., None] * C[:, now, None]
        seed[:, -1] += h_grad
        adjoint = scan_back(scan, decay, seed)
        h_grad = decay[:, 0] * adjoint[:, 0]
        B_grad[:, now] = torch.einsum("bten,bte->btn", adjoint, step * u)
        written = torch.einsum("bten,btn->bte", adjoint, B[:, now])
        exponent = decay.mul_(previous(h, starts[n])).mul_(adjoint)  # the gradient of Δ A
        A_grad += torch.einsum("bten,bte->en", exponent, step)
        delta_grad[:, now] = torch.einsum("bten,en->bte", exponent, A).addcmul_(u, written)
        x_grad[:, now].addcmul_(step, written)
    return x_grad, delta_grad, A_grad, B_grad, C_grad, D_grad, h_grad if wants_state else None

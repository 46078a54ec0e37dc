"""The selective scan compiled for the CPU: one pass over memory forward, one back."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.errors import WorkError
from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.eager import eager
from synthe_core.ops.native import function, pointer, refusal
from synthe_core.ops.selective_scan.reference import check, selective_scan

SOURCE = "selective_scan/selective_scan.c"
BLOCK, CHUNK = 64, 16  # as in the C file: channels a task, tokens between two states saved for the backward pass


@selective_scan.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def native(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """C: the state stays in the first-level cache from token to token; every 16th is saved for the backward pass."""
    check(x, delta, A, B, C, D, state)
    tensors = (x, delta, A, B, C, D, state)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return _Native.apply(*tensors, keep)


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if len({value.dtype for value in call.arguments.values() if isinstance(value, Tensor)}) > 1:
        return "its tensors are of different types"
    return refusal(hardware, call.device, SOURCE)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        state: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        x, delta, B, C, D = (tensor.contiguous() for tensor in (x, delta, B, C, D))
        rates = A.t().contiguous()  # [N, E]: neighbouring channels side by side
        state = None if state is None else state.contiguous()
        batch, time, channels = x.shape
        y, h = torch.empty_like(x), x.new_empty(batch, *A.shape)
        blocks = -(-channels // BLOCK)
        saved = x.new_empty(batch, blocks, -(-time // CHUNK), len(rates), BLOCK) if keep else None
        _call("selective_scan", (*x.shape, len(rates)), x, delta, rates, B, C, D, state, y, h, saved)
        if keep:
            ctx.save_for_backward(x, delta, rates, B, C, D, saved)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor, h_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, rates, B, C, D, saved = ctx.saved_tensors
        (batch, time, channels), size = x.shape, len(rates)
        blocks = -(-channels // BLOCK)
        x_grad, delta_grad, state_grad = torch.empty_like(x), torch.empty_like(x), torch.empty_like(h_grad)
        A_grad, D_grad = x.new_empty(batch, size, channels), x.new_empty(batch, channels)  # each row by itself
        B_grad, C_grad = x.new_empty(2, blocks, batch, time, size).unbind()  # each block of channels by itself
        arguments = (x, delta, rates, B, C, D, saved, y_grad.contiguous(), h_grad.contiguous())
        results = (x_grad, delta_grad, A_grad, B_grad, C_grad, D_grad, state_grad)
        _call("selective_scan_back", (*x.shape, size), *arguments, *results)
        sums = A_grad.sum(0).t(), B_grad.sum(0), C_grad.sum(0), D_grad.sum(0)
        return x_grad, delta_grad, *sums, state_grad if ctx.needs_input_grad[6] else None, None


def _call(name: str, sizes: tuple[int, ...], *tensors: Tensor | None) -> None:
    like = tensors[0]
    assert like is not None
    if function(SOURCE, name, like.dtype)(*map(pointer, tensors), *map(ctypes.c_int64, sizes)):
        raise WorkError("no memory left for the selective scan's scratch", "lower the batch size")

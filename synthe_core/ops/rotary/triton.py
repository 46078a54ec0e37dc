"""Rotary positions in Triton, with the norm before them: one kernel each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.triton_launch import block, cdiv, launch, wide

MAX_SIZE = 1024  # of a head
NUMBERS = 2048  # of a block


class TritonRotary(torch.autograd.Function):
    """Saves x, and norms it again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, eps: float | None) -> Tensor:
        x = x if x.stride(-1) == 1 else x.contiguous()
        cos, sin = cos.contiguous(), sin.contiguous()
        y = x.new_empty(x.shape)
        _launch(x, cos, sin, None, y, eps)
        ctx.save_for_backward(x, cos, sin)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, cos, sin = ctx.saved_tensors
        x_grad = x.new_empty(x.shape)
        _launch(x, cos, sin, grad.contiguous(), x_grad, ctx.eps)
        return x_grad, None, None, None


def _launch(x: Tensor, cos: Tensor, sin: Tensor, grad: Tensor | None, out: Tensor, eps: float | None) -> None:
    from synthe_core.ops.rotary.triton_kernels import rotary_kernel

    (batch, time, heads, size), half = x.shape, cos.shape[-1]
    rows = batch * time * heads
    of_pairs, others = block(half, MAX_SIZE), block(size - 2 * half, MAX_SIZE)
    count = block(rows, max(1, NUMBERS // max(2 * of_pairs, others)))
    launch(
        rotary_kernel, (cdiv(rows, count),), x, x, cos, sin, grad, out, rows, time, heads, size, half, *x.stride()[:3],
        0.0 if eps is None else eps,
        BACK=grad is not None, NORM=eps is not None, WIDE=wide(x.dtype), BR=count, BH=of_pairs, BK=others,
    )  # fmt: skip

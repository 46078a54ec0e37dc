"""Root-mean-square normalisation in Triton: one kernel each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.triton_launch import block, cdiv, launch, wide

MAX_WIDTH = 16384  # a row is one block
NUMBERS, ROWS = 4096, 64  # of a block, and rows whose part of the weights' gradient is one sum


class TritonNorm(torch.autograd.Function):
    """Saves x and the inverse of each row's scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        from synthe_core.ops.rms_norm.triton_kernels import rms_norm_forward

        x, weight = x.contiguous(), weight.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y = torch.empty_like(x, dtype=dtype)
        scale = x.new_empty(rows, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        sizes = _blocks(rows, width)
        launch(
            rms_norm_forward, (cdiv(rows, sizes["BR"]),), x, x, weight, y, scale, rows, width, eps,
            WIDE=wide(x.dtype), **sizes,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from synthe_core.ops.rms_norm.triton_kernels import rms_norm_backward

        x, weight, scale = ctx.saved_tensors
        width, rows = x.shape[-1], len(scale)
        x_grad, grad = torch.empty_like(x), grad.contiguous()
        partial = scale.new_empty(cdiv(rows, ROWS), width)
        launch(
            rms_norm_backward, (len(partial),), x, x, weight, scale, grad, x_grad, partial, rows, width,
            ROWS=ROWS, WIDE=wide(x.dtype), **_blocks(ROWS, width),
        )  # fmt: skip
        return x_grad, partial.sum(0).to(weight.dtype), None, None


def _blocks(rows: int, width: int) -> dict[str, int]:
    channels = block(width, MAX_WIDTH)
    return {"BR": block(rows, max(1, min(ROWS, NUMBERS // channels))), "BD": channels}

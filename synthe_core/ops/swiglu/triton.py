"""The gate of a SwiGLU MLP in Triton: one kernel each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.triton_launch import cdiv, launch, wide

BLOCK = 1024


class TritonSwiglu(torch.autograd.Function):
    """Saves its input."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        from synthe_core.ops.swiglu.triton_kernels import swiglu_forward

        gate_up = gate_up.contiguous()
        out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        sizes = out.numel(), out.shape[-1]
        launch(
            swiglu_forward, (cdiv(sizes[0], BLOCK),), out, gate_up, out, *sizes, WIDE=wide(out.dtype), BLOCK=BLOCK
        )  # fmt: skip
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        from synthe_core.ops.swiglu.triton_kernels import swiglu_backward

        (gate_up,) = ctx.saved_tensors
        gate_up_grad, grad = torch.empty_like(gate_up), grad.contiguous()
        sizes = grad.numel(), grad.shape[-1]
        launch(
            swiglu_backward, (cdiv(sizes[0], BLOCK),), grad, gate_up, grad, gate_up_grad, *sizes,
            WIDE=wide(grad.dtype), BLOCK=BLOCK,
        )  # fmt: skip
        return gate_up_grad

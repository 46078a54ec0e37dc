"""A SiLU output gate in Triton: one kernel each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.triton_launch import cdiv, launch, wide

BLOCK = 1024


class TritonSiluGate(torch.autograd.Function):
    """Saves both inputs; reads a gate that is a slice of a projection where it is."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: Tensor) -> Tensor:
        from synthe_core.ops.silu_gate.triton_kernels import silu_gate_forward

        value = value.contiguous()
        gate = gate if gate.stride(-1) == 1 else gate.contiguous()
        out = gate.new_empty(gate.shape)
        launch(
            silu_gate_forward, (cdiv(out.numel(), BLOCK),), out, value, gate, out, out.numel(), *gate.shape[1:],
            *gate.stride()[:2], WIDE=wide(value.dtype), BLOCK=BLOCK,
        )  # fmt: skip
        ctx.save_for_backward(value, gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        from synthe_core.ops.silu_gate.triton_kernels import silu_gate_backward

        value, gate = ctx.saved_tensors
        value_grad, gate_grad, grad = torch.empty_like(value), gate.new_empty(gate.shape), grad.contiguous()
        launch(
            silu_gate_backward, (cdiv(grad.numel(), BLOCK),), grad, value, gate, grad, value_grad, gate_grad,
            grad.numel(), *gate.shape[1:], *gate.stride()[:2], WIDE=wide(value.dtype), BLOCK=BLOCK,
        )  # fmt: skip
        return value_grad, gate_grad

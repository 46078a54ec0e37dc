"""The gated average compiled for the CPU: gates, product and scan in one pass over memory forward, one back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, require_float
from synthe_core.ops.gated_average.reference import gated_average
from synthe_core.ops.native import call, refusal

SOURCE = "gated_average/gated_average.c"


@gated_average.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def native(gate: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """C: only h is saved for the backward pass, which recomputes the gates."""
    require_float("gate", gate)
    h = _Native.apply(gate, value, state)
    return h, h[:, -1].clone()


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return refusal(hardware, call.device, SOURCE)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor, state: Tensor | None) -> Tensor:
        gate, value = gate.contiguous(), value.contiguous()
        state = None if state is None else state.contiguous()
        h = torch.empty_like(value)
        call(SOURCE, "average", h, gate, value, state, h)
        ctx.save_for_backward(gate, value, h, state)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, value, h, state = ctx.saved_tensors
        gate_grad, value_grad = torch.empty_like(h), torch.empty_like(h)
        state_grad = None if state is None else torch.empty_like(state)
        call(SOURCE, "average_back", h, gate, value, h, state, grad.contiguous(), gate_grad, value_grad, state_grad)
        return gate_grad, value_grad, state_grad

"""The linear scan compiled for the CPU: one pass over memory forward, one back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, require_float
from synthe_core.ops.linear_scan.reference import linear_scan
from synthe_core.ops.native import call, refusal

SOURCE = "linear_scan/linear_scan.c"


@linear_scan.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def native(decay: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """C: the state stays in the first-level cache from token to token."""
    require_float("decay", decay)
    h = _Native.apply(decay, value, state)
    return h, h[:, -1].clone()


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return refusal(hardware, call.device, SOURCE)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, value: Tensor, state: Tensor | None) -> Tensor:
        decay, value = decay.contiguous(), value.contiguous()
        state = None if state is None else state.contiguous()
        h = torch.empty_like(value)
        call(SOURCE, "scan", h, decay, value, state, h)
        ctx.save_for_backward(decay, h, state)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        decay, h, state = ctx.saved_tensors
        decay_grad, value_grad = torch.empty_like(h), torch.empty_like(h)
        state_grad = None if state is None else torch.empty_like(state)
        call(SOURCE, "scan_back", h, decay, h, state, grad.contiguous(), decay_grad, value_grad, state_grad)
        return decay_grad, value_grad, state_grad

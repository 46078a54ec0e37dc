"""The linear scan in Triton, one kernel each way, whatever the length; the gated average shares it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.linear_scan.reference import linear_scan
from synthe_core.ops.triton_launch import RANK, block, cdiv, launch, mixed_types, refusal

CHANNELS = 32  # of a program
TILE = 64  # tokens, at most


@linear_scan.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(decay: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Triton: tiles of 64 tokens by 32 channels, each scanned in parallel; a decay of zero is exact."""
    return TritonScan.apply(decay, value, state, False)


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return refusal(hardware, call) or mixed_types(call)


class TritonScan(torch.autograd.Function):
    """h and its last value, of decays or, with `gated`, of the logits of a gated average."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, value: Tensor, state: Tensor | None, gated: bool) -> tuple[Tensor, Tensor]:
        from synthe_core.ops.linear_scan.triton_kernels import scan_forward

        decay, value = decay.contiguous(), value.contiguous()
        state = None if state is None else state.contiguous()
        batch, time, width = value.shape
        h, last = torch.empty_like(value), value.new_empty(batch, width)
        sizes = {"BT": block(time, TILE, 2), "BD": CHANNELS}
        flags = {"GATED": gated, "HAS_STATE": state is not None}
        launch(
            scan_forward, (batch, cdiv(width, CHANNELS)), value, decay, value, state, h, last, time, width,
            **flags, **sizes,
        )  # fmt: skip
        ctx.save_for_backward(decay, value, h, state)
        ctx.flags, ctx.sizes = flags, sizes
        ctx.set_materialize_grads(False)
        return h, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, h_grad: Tensor | None, last_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        from synthe_core.ops.linear_scan.triton_kernels import scan_backward

        decay, value, h, state = ctx.saved_tensors
        batch, time, width = value.shape
        h_grad, last_grad = (None if grad is None else grad.contiguous() for grad in (h_grad, last_grad))
        decay_grad, value_grad = torch.empty_like(decay), torch.empty_like(value)
        state_grad = None if state is None else torch.empty_like(state)
        launch(
            scan_backward, (batch, cdiv(width, CHANNELS)), value,
            decay, value, state, h, h_grad, last_grad, decay_grad, value_grad, state_grad, time, width,
            **ctx.flags, HAS_H=h_grad is not None, HAS_LAST=last_grad is not None, **ctx.sizes,
        )  # fmt: skip
        return decay_grad, value_grad, state_grad, None

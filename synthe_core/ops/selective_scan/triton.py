"""The selective scan in Triton: one kernel each way, whatever the length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.selective_scan.reference import check, selective_scan
from synthe_core.ops.triton_launch import RANK, block, cdiv, launch, mixed_types, refusal

MAX_SIZE = 256  # numbers of state in a channel
NUMBERS = 4096  # of a tile: tokens by channels by numbers of state
WARPS = 8


@selective_scan.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton: the state in registers, a scan a tile; the state before each tile is saved for the backward pass."""
    check(x, delta, A, B, C, D, state)
    tensors = (x, delta, A, B, C, D, state)
    save = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return _Scan.apply(*tensors, save)


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    size = call.arguments["A"].shape[1]
    if size > MAX_SIZE:
        return f"written for at most {MAX_SIZE} numbers of state in a channel, not {size}"
    return refusal(hardware, call) or mixed_types(call)


def _blocks(time: int, size: int) -> dict[str, int]:
    """Tokens, channels and numbers of state of a tile."""
    numbers = block(size, MAX_SIZE)
    channels = 32 if numbers <= 16 else 16 if numbers <= 32 else 8
    most = NUMBERS if numbers <= 32 else NUMBERS // 2  # the reductions of many numbers need registers of their own
    return {"BT": block(time, max(2, most // (channels * numbers)), 2), "BE": channels, "BN": numbers}


class _Scan(torch.autograd.Function):
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
        save: bool,
    ) -> tuple[Tensor, Tensor]:
        from synthe_core.ops.selective_scan.triton_kernels import selective_scan_forward

        inputs = [tensor.contiguous() for tensor in (x, delta, A, B, C, D)]
        state = None if state is None else state.contiguous()
        (batch, time, channels), size = x.shape, A.shape[1]
        blocks = _blocks(time, size)
        y, h = torch.empty_like(inputs[0]), x.new_empty(batch, channels, size)
        saved = x.new_empty(batch, cdiv(time, blocks["BT"]), channels, size) if save else None
        launch(
            selective_scan_forward, (batch, cdiv(channels, blocks["BE"])), x,
            *inputs, state, y, h, saved, time, channels, size,
            HAS_STATE=state is not None, SAVE=save, **blocks, num_warps=WARPS,
        )  # fmt: skip
        ctx.save_for_backward(*inputs, saved)
        ctx.set_materialize_grads(False)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor | None, h_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        from synthe_core.ops.selective_scan.triton_kernels import selective_scan_backward

        *inputs, saved = ctx.saved_tensors
        x, _, A = inputs[:3]
        (batch, time, channels), size = x.shape, A.shape[1]
        blocks = _blocks(time, size)
        count = cdiv(channels, blocks["BE"])
        y_grad, h_grad = (None if grad is None else grad.contiguous() for grad in (y_grad, h_grad))
        x_grad, delta_grad = torch.empty_like(x), torch.empty_like(x)
        A_grad, D_grad = x.new_empty(batch, channels, size), x.new_empty(batch, channels)  # each row by itself
        state_grad = torch.empty_like(A_grad)
        BC_grad = x.new_empty(count, batch, time, 2, size)  # each block of channels by itself
        launch(
            selective_scan_backward, (batch, count), x, *inputs, saved, y_grad, h_grad,
            x_grad, delta_grad, A_grad, D_grad, BC_grad, state_grad, time, channels, size,
            HAS_Y=y_grad is not None, HAS_H=h_grad is not None, **blocks, num_warps=WARPS,
        )  # fmt: skip
        B_grad, C_grad = BC_grad.sum(0).unbind(2)
        first_grad = state_grad if ctx.needs_input_grad[6] else None
        return x_grad, delta_grad, A_grad.sum(0), B_grad, C_grad, D_grad.sum(0), first_grad, None

"""The short convolution in Triton: one kernel forward, which also writes the last inputs, and two back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.triton_launch import block, cdiv, launch

CHANNELS, TILE = 64, 32


class TritonConv(torch.autograd.Function):
    """y and the last J - 1 inputs. Saves x, and computes the sum before the SiLU again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, state: Tensor | None, silu: bool, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        from synthe_core.ops.triton_short_conv_kernels import short_conv_forward

        x = x if x.stride(-1) == 1 else x.contiguous()
        weight = weight.contiguous()
        state, bias = (None if each is None else each.contiguous() for each in (state, bias))
        (batch, time, width), taps = x.shape, weight.shape[1]
        y, last = x.new_empty(x.shape), x.new_empty(batch, taps - 1, width)
        flags = {"J": taps, "SILU": silu, "HAS_BIAS": bias is not None, "HAS_STATE": state is not None}
        sizes = {"BT": block(time, TILE), "BD": CHANNELS}
        grid = (batch, cdiv(time, sizes["BT"]), cdiv(width, CHANNELS))
        launch(
            short_conv_forward, grid, x, x, weight, bias, state, y, last, time, width, x.stride(0), x.stride(1),
            **flags, **sizes,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, state, bias)
        ctx.flags, ctx.sizes, ctx.grid = flags, sizes, grid
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor | None, last_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        from synthe_core.ops.triton_short_conv_kernels import short_conv_input_gradient, short_conv_sum_gradient

        x, weight, state, bias = ctx.saved_tensors
        (batch, time, width), taps = x.shape, weight.shape[1]
        y_grad = x.new_zeros(x.shape) if y_grad is None else y_grad.contiguous()
        last_grad = None if last_grad is None else last_grad.contiguous()
        sum_grad = torch.empty_like(y_grad)
        partial = x.new_empty(batch * ctx.grid[1], taps + 1, width)  # each tile by itself
        launch(
            short_conv_sum_gradient, ctx.grid, x, x, weight, bias, state, y_grad, sum_grad, partial, time, width,
            x.stride(0), x.stride(1), **ctx.flags, **ctx.sizes,
        )  # fmt: skip
        x_grad = x.new_empty(x.shape)
        state_grad = None if state is None else torch.empty_like(state)
        tile = block(time + taps - 1, TILE)
        launch(
            short_conv_input_gradient, (batch, cdiv(time + taps - 1, tile), ctx.grid[2]), x,
            weight, sum_grad, last_grad, x_grad, state_grad, time, width,
            J=taps, HAS_LAST=last_grad is not None, HAS_STATE=state is not None, BT=tile, BD=CHANNELS,
        )  # fmt: skip
        sums = partial.sum(0)
        return x_grad, sums[:taps].t(), state_grad, None, None if bias is None else sums[taps]

"""A causal depthwise convolution over a few tokens, optionally followed by SiLU; its state is its last inputs."""

from __future__ import annotations

from ctypes import c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops import activations, native
from synthe_core.ops.dispatch import Call, Slower, op, require_float
from synthe_core.ops.eager import eager
from synthe_core.ops.triton_launch import RANK, mixed_types
from synthe_core.ops.triton_launch import refusal as triton_refusal
from synthe_core.ops.triton_short_conv import TritonConv

SOURCE = "short_conv.c"
MAX_TAPS = 16  # TAPS in short_conv.c


@op(batch_invariant=("cpu",))
def short_conv(
    x: Tensor, weight: Tensor, state: Tensor | None, silu: bool = True, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y_t = silu(bias + Σ_j weight[:, j] ⊙ x_{t-J+1+j}): channel by channel, over the last J inputs.

    x [B, T, D]; weight [D, J], the last tap being the present; state [B, J-1, D], the inputs before x, None is zeros;
    bias [D], None is zeros. Returns y [B, T, D] and the last J-1 inputs [B, J-1, D]. `silu` False leaves the sum as it
    is.
    """
    require_float("x", x)
    history, taps = with_history(x, state, weight.shape[1]), weight.shape[1]
    y = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    for j in range(taps):
        y = y + weight[:, j] * history[:, j : j + x.shape[1]]
    return (activations.silu(y) if silu else y), history[:, x.shape[1] :]


def with_history(x: Tensor, state: Tensor | None, taps: int) -> Tensor:
    """x with the `taps - 1` inputs before it in front: [B, taps - 1 + T, D]."""
    before = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if state is None else state
    return torch.cat([before, x], 1)


def last_inputs(x: Tensor, state: Tensor | None, taps: int) -> Tensor:
    """The last `taps - 1` inputs: of x alone where it is long enough."""
    if x.shape[1] >= taps - 1:
        return x[:, x.shape[1] - taps + 1 :]
    return with_history(x, state, taps)[:, x.shape[1] :]


class NativeConv(torch.autograd.Function):
    """Keeps x, and computes the sum before the SiLU again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, state: Tensor | None, silu: bool, bias: Tensor | None) -> Tensor:
        x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
        taps = weight.t().contiguous()
        state = None if state is None else state.contiguous()
        y = x.new_empty(x.shape)
        NativeConv.run("short_conv_forward", x, taps, state, silu, bias, y)
        ctx.save_for_backward(x, taps, state, bias)
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, state, bias = ctx.saved_tensors
        x_grad = x.new_empty(x.shape)
        taps_grad = x.new_empty(x.shape[0], *taps.shape)
        state_grad = None if state is None else torch.empty_like(state)
        bias_grad = None if bias is None else x.new_empty(x.shape[0], x.shape[2])
        results = (x_grad, taps_grad, state_grad, bias_grad)
        NativeConv.run("short_conv_backward", x, taps, state, ctx.silu, bias, y_grad.contiguous(), *results)
        return x_grad, taps_grad.sum(0).t(), state_grad, None, None if bias_grad is None else bias_grad.sum(0)

    @staticmethod
    def run(name: str, x: Tensor, taps: Tensor, state: Tensor | None, silu: bool, *rest: Tensor | None) -> None:
        function = native.function(SOURCE, name, x.dtype)
        batch, time, channels = x.shape
        sizes = (batch, time, channels, taps.shape[0], x.stride(0), x.stride(1), int(silu))
        function(
            *map(c_int64, sizes), c_void_p(x.data_ptr()), *(native.pointer(tensor) for tensor in (taps, state, *rest))
        )


@short_conv.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def compiled(
    x: Tensor, weight: Tensor, state: Tensor | None, silu: bool = True, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compiled C: one pass over memory each way."""
    return NativeConv.apply(x, weight, state, silu, bias), last_inputs(x, state, weight.shape[1])


@compiled.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    taps = call.arguments["weight"].shape[1]
    if taps > MAX_TAPS:
        return f"compiled for at most {MAX_TAPS} taps, not {taps}"
    if len({value.dtype for value in call.arguments.values() if isinstance(value, Tensor)}) > 1:
        return "its tensors are of different types"
    if call.dtype not in (torch.float32, torch.float64):
        return f"compiled for float32 and float64, not {call.dtype}"
    return native.refusal(hardware, call.device, SOURCE)


@short_conv.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(
    x: Tensor, weight: Tensor, state: Tensor | None, silu: bool = True, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Triton: sum, SiLU and the last inputs in one kernel."""
    return TritonConv.apply(x, weight, state, silu, bias)


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    taps = call.arguments["weight"].shape[1]
    if taps > MAX_TAPS:
        return f"written for at most {MAX_TAPS} taps, not {taps}"
    return triton_refusal(hardware, call) or mixed_types(call)


@short_conv.kernel("grouped", rank=10, tolerance=1e-5)
def grouped(
    x: Tensor, weight: Tensor, state: Tensor | None, silu: bool = True, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """torch's grouped convolution, which GPUs have a kernel for."""
    history = with_history(x, state, weight.shape[1])
    y = F.conv1d(history.transpose(1, 2), weight[:, None], bias, groups=x.shape[2]).transpose(1, 2)
    return (activations.silu(y) if silu else y), history[:, x.shape[1] :]


@grouped.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return Slower("slower than the sum of shifted inputs on a CPU") if call.device == "cpu" else None

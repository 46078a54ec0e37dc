"""Rotary positions, with the norm of queries and keys before them: one pass over memory each way on a CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, op
from synthe_core.ops.native import library, pointer, refusal
from synthe_core.ops.rotary.triton import MAX_SIZE, TritonRotary
from synthe_core.ops.triton_launch import RANK
from synthe_core.ops.triton_launch import refusal as triton_refusal

SOURCE = "rotary/rotary.c"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SUFFIX = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float64: "double"}


@op(batch_invariant=("cpu",))
def rotary(x: Tensor, cos: Tensor, sin: Tensor, eps: float | None) -> Tensor:
    """Turns each pair of channels (i, i + R/2), i < R/2, of every head by the token's angle, after a
    root-mean-square norm.

        u = x / sqrt(mean(x²) + eps)   (u = x where eps is None)
        y = [u₁ cos - u₂ sin, u₁ sin + u₂ cos, u₃]      u₁, u₂ the halves of the first R channels of u, u₃ its others

    x [B, T, H, K]; cos and sin [B, T, R/2], R at most K, float32 (float64 for a float64 x). y as x is stored.
    Sources: Su et al. 2021 (rotary positions); Henry et al. 2020 (query-key norm).
    """
    wide = x.to(cos.dtype)
    if eps is not None:
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    half = cos.shape[-1]
    first, second, rest = wide.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1).to(x.dtype)


@rotary.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def native(x: Tensor, cos: Tensor, sin: Tensor, eps: float | None) -> Tensor:
    """C: reads a slice of the projection where it is."""
    return _Native.apply(x, cos, sin, -1.0 if eps is None else eps)


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if call.dtype not in _SUFFIX:
        return f"no native code for {call.dtype}"
    x = call.arguments["x"]
    if call.arguments["cos"].dtype != (torch.float64 if x.dtype == torch.float64 else torch.float32):
        return "cos and sin are of another precision"
    if torch.is_grad_enabled() and (call.arguments["cos"].requires_grad or call.arguments["sin"].requires_grad):
        return "the angles need a gradient"
    return refusal(hardware, call.device, SOURCE)


@rotary.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(x: Tensor, cos: Tensor, sin: Tensor, eps: float | None) -> Tensor:
    """Triton: norm and rotation of a head in registers."""
    return TritonRotary.apply(x, cos, sin, eps)


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    size = call.arguments["x"].shape[-1]
    if size > MAX_SIZE:
        return f"written for heads of at most {MAX_SIZE} channels, not {size}"
    if torch.is_grad_enabled() and (call.arguments["cos"].requires_grad or call.arguments["sin"].requires_grad):
        return "the angles need a gradient"
    return triton_refusal(hardware, call, _FLOATS)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        x, cos, sin = _side_by_side(x), cos.contiguous(), sin.contiguous()
        y = x.new_empty(x.shape)
        _call("rotary", x, eps, 2 * cos.shape[-1], cos, sin, y)
        ctx.save_for_backward(x, cos, sin)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, cos, sin = ctx.saved_tensors
        x_grad = x.new_empty(x.shape)
        _call("rotary_back", x, ctx.eps, 2 * cos.shape[-1], cos, sin, grad.contiguous(), x_grad)
        return x_grad, None, None, None


def _side_by_side(x: Tensor) -> Tensor:
    """x, copied unless a token's heads are contiguous and tokens lie at one distance."""
    batch, token, head, channel = x.stride()
    fits = channel == 1 and head == x.shape[3] and (batch == token * x.shape[1] or x.shape[0] == 1)
    return x if fits else x.contiguous()


def _call(name: str, x: Tensor, eps: float, turned: int, *others: Tensor) -> None:
    batch, time, heads, size = x.shape
    slice_of_tokens = ctypes.c_void_p(x.data_ptr())  # not contiguous: its tokens are stride(1) apart
    sizes = map(ctypes.c_int64, (batch * time, heads, size, turned, x.stride(1)))
    function = getattr(library(SOURCE), f"{name}_{_SUFFIX[x.dtype]}")
    function(slice_of_tokens, *map(pointer, others), ctypes.c_double(eps), *sizes)

"""Root-mean-square normalisation. Torch's own is many passes over memory on a CPU; the C kernel is one each way."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, op
from synthe_core.ops.native import library, pointer, refusal
from synthe_core.ops.rms_norm.triton import MAX_WIDTH, TritonNorm
from synthe_core.ops.triton_launch import RANK
from synthe_core.ops.triton_launch import refusal as triton_refusal

SOURCE = "rms_norm/rms_norm.c"
ROWS = 64  # as in the C file
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SUFFIX = {
    (torch.float32, torch.float32): "float",
    (torch.float32, torch.bfloat16): "bfloat16",
    (torch.float64, torch.float64): "double",
}


@op(batch_invariant=("cpu",))
def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """y = x / sqrt(mean(x²) + eps) ⊙ weight over the last axis, stored as `dtype`.

    x [..., D], weight [D]. Source: Zhang & Sennrich 2019.
    """
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight).to(dtype)


@rms_norm.kernel("torch", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def fused(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Torch's operator, which is one kernel on an accelerator."""
    return F.rms_norm(x, weight.shape, weight, eps).to(dtype)


@rms_norm.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def native(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """C: reads x once forward; x and the gradient once back."""
    return _Native.apply(x, weight, eps, dtype)


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    pair = (call.dtype, call.arguments["dtype"])
    if pair not in _SUFFIX or call.arguments["weight"].dtype != call.dtype:
        return f"no native code for {pair[0]} to {pair[1]}"
    return refusal(hardware, call.device, SOURCE)


@rms_norm.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Triton: a row a program; x, the gradient and each row's scale are read once back."""
    return TritonNorm.apply(x, weight, eps, dtype)


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    width = call.arguments["x"].shape[-1]
    if width > MAX_WIDTH:
        return f"written for rows of at most {MAX_WIDTH} numbers, not {width}"
    return triton_refusal(hardware, call, _FLOATS)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        y, scale = torch.empty_like(x, dtype=dtype), x.new_empty(x.shape[:-1])
        tensors = map(pointer, (x, weight, y, scale))
        _function("norm", x.dtype, dtype)(*tensors, ctypes.c_double(eps), *_sizes(x))
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        grad = grad.contiguous()
        x_grad = torch.empty_like(x)
        partial = x.new_empty(-(-scale.numel() // ROWS), x.shape[-1])
        tensors = map(pointer, (x, weight, scale, grad, x_grad, partial))
        _function("norm_back", x.dtype, grad.dtype)(*tensors, *_sizes(x))
        return x_grad, partial.sum(0), None, None


def _function(name: str, real: torch.dtype, out: torch.dtype) -> Any:
    return getattr(library(SOURCE), f"{name}_{_SUFFIX[real, out]}")


def _sizes(x: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return ctypes.c_int64(x.numel() // x.shape[-1]), ctypes.c_int64(x.shape[-1])

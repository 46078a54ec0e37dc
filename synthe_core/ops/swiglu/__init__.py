"""The gate of a SwiGLU MLP, in one pass over memory each way on a CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.activations import silu
from synthe_core.ops.dispatch import Call, op
from synthe_core.ops.native import library, pointer, refusal
from synthe_core.ops.swiglu.triton import TritonSwiglu
from synthe_core.ops.triton_launch import RANK
from synthe_core.ops.triton_launch import refusal as triton_refusal

SOURCE = "swiglu/swiglu.c"
_SUFFIX = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float64: "double"}


@op(batch_invariant=("cpu",))
def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) ⊙ up, where gate_up [..., 2 H] is gate and up side by side; gives [..., H]. Source: Shazeer 2020."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


@swiglu.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def native(gate_up: Tensor) -> Tensor:
    """C: computes in float32 (float64 for float64) whatever is stored."""
    return _Native.apply(gate_up)


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if call.dtype not in _SUFFIX:
        return f"no native code for {call.dtype}"
    return refusal(hardware, call.device, SOURCE)


@swiglu.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(gate_up: Tensor) -> Tensor:
    """Triton: computes in float32 (float64 for float64) whatever is stored."""
    return TritonSwiglu.apply(gate_up)


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return triton_refusal(hardware, call, (*_SUFFIX, torch.float16))


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        _call("swiglu", out, gate_up, out)
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate_up_grad = torch.empty_like(gate_up)
        _call("swiglu_back", grad, gate_up, grad.contiguous(), gate_up_grad)
        return gate_up_grad


def _call(name: str, out: Tensor, *tensors: Tensor) -> None:
    width = out.shape[-1]
    sizes = ctypes.c_int64(out.numel() // width), ctypes.c_int64(width)
    getattr(library(SOURCE), f"{name}_{_SUFFIX[out.dtype]}")(*map(pointer, tensors), *sizes)

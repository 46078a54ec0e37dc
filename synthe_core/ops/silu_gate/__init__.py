"""A SiLU output gate, channel by channel. One pass over memory each way on a CPU."""

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
from synthe_core.ops.silu_gate.triton import TritonSiluGate
from synthe_core.ops.triton_launch import RANK
from synthe_core.ops.triton_launch import refusal as triton_refusal

SOURCE = "silu_gate/silu_gate.c"
_SUFFIX = {
    (torch.float32, torch.float32): "float",
    (torch.float32, torch.bfloat16): "bfloat16",
    (torch.float64, torch.float64): "double",
}


@op(batch_invariant=("cpu",))
def silu_gate(value: Tensor, gate: Tensor) -> Tensor:
    """y = value ⊙ gate ⊙ σ(gate), both [B, T, D]; y in the dtype of the gate, computed in that of the value."""
    return (value * silu(gate.to(value.dtype))).to(gate.dtype)


@silu_gate.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def native(value: Tensor, gate: Tensor) -> Tensor:
    """C: reads a gate that is a slice of a projection where it is."""
    return _Native.apply(value, gate)


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    pair = (call.dtype, call.arguments["gate"].dtype)
    if pair not in _SUFFIX:
        return f"no native code for values in {pair[0]} and gates in {pair[1]}"
    return refusal(hardware, call.device, SOURCE)


@silu_gate.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(value: Tensor, gate: Tensor) -> Tensor:
    """Triton: reads a gate that is a slice of a projection where it is."""
    return TritonSiluGate.apply(value, gate)


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return triton_refusal(hardware, call)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: Tensor) -> Tensor:
        value, gate = value.contiguous(), _rows_apart(gate)
        out = gate.new_empty(gate.shape)
        _call("silu_gate", value, gate, out)
        ctx.save_for_backward(value, gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = ctx.saved_tensors
        value_grad, gate_grad = torch.empty_like(value), gate.new_empty(gate.shape)
        _call("silu_gate_back", value, gate, grad.contiguous(), value_grad, gate_grad)
        return value_grad, gate_grad


def _rows_apart(gate: Tensor) -> Tensor:
    """gate, copied unless its channels are contiguous and its tokens lie at one distance."""
    batch, token, channel = gate.stride()
    fits = channel == 1 and (batch == token * gate.shape[1] or gate.shape[0] == 1)
    return gate if fits else gate.contiguous()


def _call(name: str, value: Tensor, gate: Tensor, *others: Tensor) -> None:
    sizes = map(ctypes.c_int64, (value.shape[0] * value.shape[1], value.shape[2], gate.stride(1)))
    slice_of_rows = ctypes.c_void_p(gate.data_ptr())  # not contiguous: its rows are stride(1) apart
    function = getattr(library(SOURCE), f"{name}_{_SUFFIX[value.dtype, gate.dtype]}")
    function(pointer(value), slice_of_rows, *map(pointer, others), *sizes)

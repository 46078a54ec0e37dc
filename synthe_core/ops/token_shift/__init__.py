"""The token shift: inputs mixed with those one token earlier, channel by channel, for several purposes at once.

Source: Peng et al. 2023 (RWKV).
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, op
from synthe_core.ops.eager import eager
from synthe_core.ops.native import library, pointer, refusal

SOURCE = "token_shift/token_shift.c"
_SUFFIX = {
    (torch.float32, torch.float32): "float",
    (torch.bfloat16, torch.float32): "bfloat16",
    (torch.float64, torch.float64): "double",
}


@op(batch_invariant=("cpu",))
def token_shift(x: Tensor, mix: Tensor, before: Tensor) -> tuple[Tensor, ...]:
    """y^c_t = x_t + mix_c ⊙ (x_{t-1} - x_t) for every purpose c.

    x [B, T, D]; mix [C, D]; before [B, 1, D], the input before x, of the same dtype. Returns C tensors [B, T, D] as x
    is stored, computed as `mix` is.
    """
    previous = torch.cat([before, x[:, :-1]], 1)
    x, shift = x.to(mix.dtype), previous.to(mix.dtype) - x.to(mix.dtype)
    return tuple((x + part * shift).to(previous.dtype) for part in mix)


@token_shift.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def native(x: Tensor, mix: Tensor, before: Tensor) -> tuple[Tensor, ...]:
    """C: reads x once forward, x and every gradient once back."""
    return _Native.apply(x, mix, before)


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    pair = (call.dtype, call.arguments["mix"].dtype)
    if pair not in _SUFFIX or call.arguments["before"].dtype != call.dtype:
        return f"no native code for inputs in {pair[0]} and mixes in {pair[1]}"
    return refusal(hardware, call.device, SOURCE)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mix: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        x, mix, before = x.contiguous(), mix.contiguous(), before.contiguous()
        mixed = tuple(torch.empty_like(x) for _ in mix)
        _call("token_shift", x, mix, before, _array(mixed))
        ctx.save_for_backward(x, mix, before)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, mix, before = ctx.saved_tensors
        grads = tuple(grad.contiguous() for grad in grads)
        x_grad, before_grad = torch.empty_like(x), torch.empty_like(before)
        mix_grad = mix.new_empty(x.shape[0], *mix.shape)
        results = (pointer(part) for part in (x_grad, mix_grad, before_grad))
        _call("token_shift_back", x, mix, before, _array(grads), *results)
        return x_grad, mix_grad.sum(0), before_grad


def _array(tensors: tuple[Tensor, ...]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(pointer(tensor) for tensor in tensors))


def _call(name: str, x: Tensor, mix: Tensor, before: Tensor, *others: Any) -> None:
    sizes = (ctypes.c_int64(size) for size in (*x.shape, mix.shape[0]))
    function = getattr(library(SOURCE), f"{name}_{_SUFFIX[x.dtype, mix.dtype]}")
    function(*map(pointer, (x, mix, before)), *others, *sizes)

"""A machine with one large GPU, for everything that asks the probe; and torch's functions that are one kernel there.

fla's kernels refuse (no triton): what is counted is what torch alone would launch. Import it after `tensor`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.gpu.simulated import tensor as device  # isort: skip  (before torch)

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware import probe as probing
from tests.gpu.simulated.counts import current
from tests.gpu.simulated.tensor import SimulatedTensor

_real = probing.probe()
HARDWARE = dataclasses.replace(
    _real,
    device="cuda",
    gpu=probing.Gpu("NVIDIA H200", 141 << 30, (9, 0)),
    gpus=(probing.Gpu("NVIDIA H200", 141 << 30, (9, 0)),),
    libraries={name: number for name, number in _real.libraries.items() if name != "triton"},
)
"""The simulated machine."""
probing._probed[0] = HARDWARE

_attention, _rms_norm = F.scaled_dot_product_attention, F.rms_norm


def _plain(value: Any) -> Any:
    return value.elem if isinstance(value, SimulatedTensor) else value


def _count(kernel: str, count: int = 1) -> None:
    if (counts := current()) is not None:
        counts.launch(kernel, count)


class _FusedAttention(torch.autograd.Function):
    """Attention as torch has it on CUDA in 16 bits: one kernel, and back three (D = rowsum(dO ⊙ O), the gradients, and
    their conversion)."""

    @staticmethod
    def forward(ctx: Any, query: SimulatedTensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.options = options
        _count("fused attention")
        return SimulatedTensor(_attention(query.elem, _plain(key), _plain(value), **options))

    @staticmethod
    def backward(ctx: Any, grad: SimulatedTensor) -> Any:  # type: ignore[override]
        _count("fused attention backward", 3)
        with torch.enable_grad():
            inputs = [each.elem.detach().requires_grad_() for each in ctx.saved_tensors]
            grads = torch.autograd.grad(_attention(*inputs, **ctx.options), inputs, grad.elem)
        return *(SimulatedTensor(each) for each in grads), None


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One kernel where torch has a fused one; with a gradient those of 16 bits, which take no mask that learns."""
    if not isinstance(query, SimulatedTensor):
        return _attention(query, key, value, *args, **kwargs)
    options = {name: _plain(each) for name, each in kwargs.items()} | dict(
        zip(("attn_mask", "dropout_p", "is_causal"), map(_plain, args), strict=False)
    )
    mask = kwargs.get("attn_mask")
    if torch.is_grad_enabled():
        if mask is not None and mask.requires_grad:
            return _attention(query, key, value, *args, **kwargs)
        if torch.is_autocast_enabled("cuda"):
            query, key, value = (each.to(torch.get_autocast_dtype("cuda")) for each in (query, key, value))
        with torch.autocast("cuda", enabled=False):
            return _FusedAttention.apply(query, key, value, options)  # type: ignore[no-any-return]
    if kwargs.get("enable_gqa") and mask is not None:
        _count("attention without a fused kernel", 6)  # grouped heads with a mask: repeat, products, softmax
    else:
        _count("fused attention")
    return SimulatedTensor(_attention(query.elem, _plain(key), _plain(value), **options))


class _FusedNorm(torch.autograd.Function):
    """RMSNorm as torch has it on CUDA: one kernel, two for the gradients."""

    @staticmethod
    def forward(ctx: Any, x: SimulatedTensor, shape: Any, weight: Any, eps: float | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape, ctx.eps = shape, eps
        _count("fused rms_norm")
        return SimulatedTensor(_rms_norm(x.elem, shape, _plain(weight), eps))

    @staticmethod
    def backward(ctx: Any, grad: SimulatedTensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        _count("fused rms_norm backward", 2)
        with torch.enable_grad():
            inputs = [each.elem.detach().requires_grad_() for each in (x, weight) if each is not None]
            out = _rms_norm(inputs[0], ctx.shape, inputs[1] if weight is not None else None, ctx.eps)
            grads = torch.autograd.grad(out, inputs, grad.elem.to(out.dtype))
        made = [SimulatedTensor(each) for each in grads]
        return made[0], None, made[1] if weight is not None else None, None


def _norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    if isinstance(x, SimulatedTensor):
        return _FusedNorm.apply(x, shape, weight, eps)  # type: ignore[no-any-return]
    return _rms_norm(x, shape, weight, eps)


F.scaled_dot_product_attention = _fused_attention
F.rms_norm = _norm  # type: ignore[assignment]

__all__ = ["HARDWARE", "device"]

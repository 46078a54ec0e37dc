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


def _fused_attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One kernel forward where torch has a fused one: without a gradient here, since the CPU's operators differ."""
    if not isinstance(query, SimulatedTensor) or torch.is_grad_enabled():
        return _attention(query, *args, **kwargs)
    if kwargs.get("enable_gqa") and kwargs.get("attn_mask") is not None:
        _count("attention without a fused kernel", 6)  # grouped heads with a mask: repeat, products, softmax
    else:
        _count("fused attention")
    arguments = [_plain(each) for each in args]
    options = {name: _plain(value) for name, value in kwargs.items()}
    return SimulatedTensor(_attention(query.elem, *arguments, **options))


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

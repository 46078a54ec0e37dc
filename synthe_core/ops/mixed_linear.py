"""Linear maps under autocast on CUDA: a matrix is cast once a step, and its gradient leaves the product in float32.

Autocast casts each matrix in every pass, and each gradient of one from 16 bits back to 32: two launches a map and pass,
and a rounding of what micro-batches add up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.dispatch import compute_dtype


class _Active(threading.local):
    casts: dict[int, Tensor] = {}  # noqa: RUF012  # replaced, never changed


_active = _Active()


@contextmanager
def cast_once(weights: Iterable[Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Within the block this thread's products read casts of these matrices that are made here, all of them in a few
    launches. The matrices must not change in the block."""
    matrices = [each for each in weights if serves_weight(each)]
    outer = _active.casts
    if matrices:
        with torch.no_grad():
            casts = [torch.empty_like(each, dtype=dtype) for each in matrices]
            torch._foreach_copy_(casts, matrices)
        _active.casts = {id(each): cast for each, cast in zip(matrices, casts, strict=True)}
    try:
        yield
    finally:
        _active.casts = outer


def serves_weight(weight: Tensor) -> bool:
    """Whether it is a matrix of float32 on CUDA that learns."""
    return weight.is_cuda and weight.requires_grad and weight.dim() == 2 and weight.dtype == torch.float32


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is computed by `mixed_linear`."""
    return (
        x.is_cuda
        and torch.is_autocast_enabled("cuda")
        and torch.is_grad_enabled()
        and serves_weight(weight)
        and not torch.compiler.is_compiling()
    )


def mixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b in autocast's type; x [..., I], W [O, I], b [O], y [..., O]. The gradients of W and b are float32: sums
    of products of 16-bit numbers."""
    dtype = compute_dtype(x)
    cast = _active.casts.get(id(weight))
    if cast is None or cast.dtype != dtype:
        cast = weight.detach().to(dtype)
    with torch.autocast("cuda", enabled=False):
        return _MixedLinear.apply(x.to(dtype), weight, bias, cast)


class _MixedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cast: Tensor) -> Tensor:
        ctx.save_for_backward(x, cast)
        ctx.has_bias = bias is not None
        y = x.flatten(0, -2) @ cast.t()
        if bias is not None:
            y = y + bias.to(y.dtype)
        return y.view(*x.shape[:-1], len(cast))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, cast = ctx.saved_tensors
        rows = upstream.reshape(-1, upstream.shape[-1])
        of_x = (rows @ cast).view(x.shape) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.mm(rows.t(), x.reshape(-1, x.shape[-1]), out_dtype=torch.float32)
        of_bias = rows.sum(0, dtype=torch.float32) if ctx.has_bias else None
        return of_x, of_weight, of_bias, None

"""The long convolution compiled for the CPU: the sum itself, at nearly the processor's peak."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.execution import active_context
from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, Slower, require_float
from synthe_core.ops.long_conv.reference import long_conv
from synthe_core.ops.native import function, pointer, refusal
from synthe_core.ops.short_conv import with_history

SOURCE = "long_conv/long_conv.c"
MAX_TAPS = 2048  # taps that meet inputs; the sum and the FFTs take the same time at about this many


@long_conv.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def native(u: Tensor, taps: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """C: 2 L operations an output, which for filters of a few thousand taps take less time than FFTs do."""
    require_float("u", u)
    history = with_history(u, state, taps.shape[1])
    if state is None:  # its zeros need no multiplications
        return _Native.apply(u, taps, 0), history[:, u.shape[1] :]
    return _Native.apply(history, taps, taps.shape[1] - 1), history[:, u.shape[1] :]


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if (reason := refusal(hardware, call.device, SOURCE)) is not None:
        return reason
    taps = call.arguments["taps"].shape[1]
    if min(taps, call.time) > MAX_TAPS and not active_context().batch_invariant:
        return Slower(f"{taps} taps over {call.time} tokens: beyond {MAX_TAPS} FFTs are quicker")
    return None


class _Native(torch.autograd.Function):
    """y [B, T, D] of the inputs [B, P + T, D], the first P of which come before."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, taps: Tensor, before: int) -> Tensor:
        inputs, rows = inputs.contiguous(), taps.t().contiguous()
        ctx.save_for_backward(inputs, rows)
        ctx.before = before
        count, offset = inputs.shape[1] - before, before + 1 - len(rows)
        return _correlate(rows[None], inputs, count, offset, backwards=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, rows = ctx.saved_tensors
        grad, before = grad.contiguous(), ctx.before
        inputs_grad = _correlate(rows[None], grad, inputs.shape[1], -before)
        rows_grad = _correlate(grad, inputs, len(rows), before + 1 - len(rows)).sum(0).flip(0)
        return inputs_grad, rows_grad.t(), None


def _correlate(a: Tensor, b: Tensor, count: int, offset: int, backwards: bool = False) -> Tensor:
    """Σ_i a[:, i] b[:, i + r + offset] for r < count: [B, count, D] of a [B or 1, I, D] and b [B, J, D].

    `backwards` reads the rows of a from the last to the first.
    """
    rows, channels = a.shape[1:]
    out = b.new_empty(b.shape[0], count, channels)
    first = a.data_ptr() + (rows - 1) * channels * a.element_size() if backwards else a.data_ptr()
    a_sizes = (a.stride(0) if a.shape[0] > 1 else 0, -channels if backwards else channels, rows)
    sizes = (count, b.shape[0], channels, offset)
    correlate = function(SOURCE, "correlate", b.dtype)
    done = correlate(
        ctypes.c_void_p(first),
        *map(ctypes.c_int64, a_sizes),
        pointer(b),
        *map(ctypes.c_int64, (b.stride(0), b.shape[1])),
        pointer(out),
        *map(ctypes.c_int64, sizes),
    )
    if not done:
        raise MemoryError("the long convolution's working memory")
    return out

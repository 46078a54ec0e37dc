"""The generalised delta rule and Kimi's delta attention as compiled C for CPUs (generalized_delta_rule.c)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.errors import WorkError
from synthe_core.hardware.probe import Hardware
from synthe_core.ops import native
from synthe_core.ops.delta_rule.native import memory_view, packed, view
from synthe_core.ops.dispatch import Call
from synthe_core.ops.eager import eager
from synthe_core.ops.generalized_delta_rule.reference import generalized_delta_rule

SOURCE = "generalized_delta_rule/generalized_delta_rule.c"


class Shape(ctypes.Structure):
    """`Shape` in generalized_delta_rule.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "time", "heads", "key", "value", "tied")]


def run(name: str, dtype: torch.dtype, shape: Shape, *views: ctypes.Structure) -> None:
    function = native.function(SOURCE, name, dtype)
    if function(ctypes.byref(shape), *(ctypes.byref(v) for v in views)):
        raise WorkError("no memory left for the generalized delta rule's scratch", "lower the batch size")


class NativeRule(torch.autograd.Function):
    """The forward keeps its inputs, what was recalled at every token, and the memory once a segment.

    Tied (Kimi's delta attention) has a β and neither a nor b; it keeps what was written in place of the values.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        beta: Tensor | None,
        log_decay: Tensor,
        state: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        q, k, v, log_decay = packed(q), packed(k), packed(v), packed(log_decay)
        a, b, state = (None if x is None else packed(x) for x in (a, b, state))
        (batch, time, heads, key), value = q.shape, v.shape[-1]
        shape = Shape(batch, time, heads, key, value, beta is not None)
        segments = -(-time // ctypes.c_int64.in_dll(native.library(SOURCE), "tokens_a_segment").value)
        out, recalls = q.new_empty(v.shape), q.new_empty(v.shape) if keep else None
        final = q.new_empty(batch, heads, key, value)
        saved = q.new_empty(batch, heads, segments * key, value) if keep else None
        inputs = (view(x) for x in (q, k, v, a, b, beta, log_decay))
        outputs = (view(out), memory_view(final), view(recalls), memory_view(saved))
        run("forward", q.dtype, shape, *inputs, memory_view(state), *outputs)
        if keep:
            ctx.save_for_backward(q, k, v if beta is None else None, a, b, beta, log_decay, recalls, saved)
            ctx.shape, ctx.has_state = shape, state is not None
        return out, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor, final_grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, recalls, saved = ctx.saved_tensors
        q, k, _, a, b, beta, log_decay = inputs
        grads = [None if x is None else q.new_empty(x.shape) for x in (q, k, recalls, a, b, beta, log_decay)]
        state_grad = q.new_empty(q.shape[0], q.shape[2], q.shape[3], recalls.shape[-1]) if ctx.has_state else None
        out_grad, final_grad = packed(out_grad), packed(final_grad)
        arguments = (
            *(view(x) for x in inputs),
            view(recalls),
            memory_view(saved),
            view(out_grad),
            memory_view(final_grad),
        )
        run("backward", q.dtype, ctx.shape, *arguments, *(view(x) for x in grads), memory_view(state_grad))
        return *grads, state_grad, None


def refusal(hardware: Hardware, call: Call) -> str | None:
    """Why the compiled kernel cannot serve a call, or None."""
    if len({value.dtype for value in call.arguments.values() if isinstance(value, Tensor)}) > 1:
        return "its tensors are of different types"
    if call.dtype not in (torch.float32, torch.float64):
        return f"compiled for float32 and float64, not {call.dtype}"
    return native.refusal(hardware, call.device, SOURCE)


def compiled_rule(*tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    """Either rule in C, of (q, k, v, a, b, β, log_decay, state): see `generalized_delta_rule`, `kda`."""
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return NativeRule.apply(*tensors, keep)


@generalized_delta_rule.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def compiled(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compiled C: token by token with the memory in the first-level cache, a hand-written backward."""
    return compiled_rule(q, k, v, a, b, None, log_decay, state)


compiled.refuses(refusal)

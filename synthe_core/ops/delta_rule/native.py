"""The delta rule and gated linear attention as compiled C for CPUs (delta_rule.c)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.errors import WorkError
from synthe_core.hardware.probe import Hardware
from synthe_core.ops import native
from synthe_core.ops.delta_rule.reference import delta_rule
from synthe_core.ops.dispatch import Call
from synthe_core.ops.eager import eager

SOURCE = "delta_rule/delta_rule.c"
SEGMENT = 64  # tokens between two memories saved for the backward pass: CHUNK * SEGMENT in delta_rule.c
LANES = 16  # the columns of a memory are split in multiples of this


class View(ctypes.Structure):
    """`View` in delta_rule.c: an address and the strides of batch, time and head."""

    _fields_ = [("data", ctypes.c_void_p), ("b", ctypes.c_int64), ("t", ctypes.c_int64), ("h", ctypes.c_int64)]


class Shape(ctypes.Structure):
    """`Shape` in delta_rule.c."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("batch", "time", "heads", "group", "key", "value", "blocks", "overwrite")
    ]


NOTHING = View(None, 0, 0, 0)


def view(x: Tensor | None) -> View:
    """x [B, T, H, ...] as the kernel sees it."""
    return NOTHING if x is None else View(x.data_ptr(), x.stride(0), x.stride(1), x.stride(2))


def memory_view(x: Tensor | None) -> View:
    """x [B, H, rows, V]; rows take the place of time."""
    return NOTHING if x is None else View(x.data_ptr(), x.stride(0), x.stride(2), x.stride(1))


def packed(x: Tensor) -> Tensor:
    """x with a contiguous last dimension, which the kernel needs."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def run(name: str, dtype: torch.dtype, shape: Shape, *views: View) -> None:
    function = native.function(SOURCE, name, dtype)
    if function(ctypes.byref(shape), *(ctypes.byref(v) for v in views)):
        raise WorkError("no memory left for the delta rule's scratch", "lower the batch size")


def blocks(batch: int, heads: int, value: int) -> int:
    """The number of blocks of columns that a memory is split into, so that every thread has work."""
    parts = min(-(-torch.get_num_threads() // (batch * heads)), -(-value // LANES))
    return -(-value // (-(-value // (parts * LANES)) * LANES))


class NativeMemory(torch.autograd.Function):
    """The forward saves its inputs, the error at every key, and the memory every `SEGMENT` tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        state: Tensor | None,
        overwrite: bool,
        keep: bool,
        with_error: bool,
    ) -> tuple[Tensor, ...]:
        q, k, v = packed(q), packed(k), packed(v)
        state = None if state is None else packed(state)
        (batch, time, heads, value), key = v.shape, q.shape[-1]
        shape = Shape(batch, time, heads, heads // q.shape[2], key, value, blocks(batch, heads, value), overwrite)
        out = q.new_empty(batch, time, heads, value)
        final = q.new_empty(batch, heads, key, value)
        error = q.new_empty(batch, time, heads, value) if with_error or (keep and overwrite) else None
        saved = q.new_empty(batch, heads, -(-time // SEGMENT) * key, value) if keep else None
        inputs = (view(q), view(k), view(v), view(beta), view(log_decay), memory_view(state))
        outputs = (view(out), memory_view(final), view(error), memory_view(saved))
        run("delta_rule_forward", q.dtype, shape, *inputs, *outputs)
        if keep:
            ctx.save_for_backward(q, k, v, beta, log_decay, error, saved, final)
            ctx.overwrite, ctx.has_state = overwrite, state is not None
        return (out, final, error) if with_error and error is not None else (out, final)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor, final_grad: Tensor, *error_grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, beta, log_decay, error, saved, final = ctx.saved_tensors
        (batch, time, heads, value), (of_keys, key) = v.shape, q.shape[2:]
        parts = blocks(batch, heads, value)
        shape = Shape(batch, time, heads, heads // of_keys, key, value, parts, ctx.overwrite)
        out_grad, final_grad = packed(out_grad), packed(final_grad)
        q_grad, k_grad = (q.new_empty(parts, batch, time, heads, key) for _ in range(2))
        v_grad = q.new_empty(v.shape)
        beta_grad = q.new_empty(parts, batch, time, heads)
        decay_grad = None if log_decay is None else q.new_empty(parts, batch, time, heads)
        state_grad = q.new_empty(batch, heads, key, value) if ctx.has_state else None
        run(
            "delta_rule_backward",
            q.dtype,
            shape,
            *(view(x) for x in (q, k, v, beta, log_decay, error)),
            *(memory_view(x) for x in (saved, final)),
            view(out_grad),
            memory_view(final_grad),
            *(view(x[0]) for x in (q_grad, k_grad)),
            view(v_grad),
            view(beta_grad[0]),
            view(None if decay_grad is None else decay_grad[0]),
            memory_view(state_grad),
            view(packed(error_grad[0]) if error_grad else None),
        )
        shared = [
            None if x is None else x[0] if parts == 1 else x.sum(0) for x in (q_grad, k_grad, beta_grad, decay_grad)
        ]
        if heads != of_keys:
            shared[:2] = (x.unflatten(2, (of_keys, -1)).sum(3) for x in shared[:2] if x is not None)
        return shared[0], shared[1], v_grad, shared[2], shared[3], state_grad, None, None, None


def refusal(hardware: Hardware, call: Call) -> str | None:
    """Why the compiled kernel cannot serve a call, or None."""
    dtypes = {value.dtype for value in call.arguments.values() if isinstance(value, Tensor)}
    if len(dtypes) > 1:
        return "its tensors are of different types"
    if call.dtype not in (torch.float32, torch.float64):
        return f"compiled for float32 and float64, not {call.dtype}"
    return native.refusal(hardware, call.device, SOURCE)


def compiled_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    overwrite: bool,
    with_error: bool = False,
) -> Any:
    """Either rule (see `delta_rule`, `linear_attention`) in C; `overwrite` False adds instead.

    With `with_error`, the errors v_t - S k_t [B, T, H, V] are the third output.
    """
    tensors = (q, k, v, beta, log_decay, state)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return NativeMemory.apply(*tensors, overwrite, keep, with_error)


@delta_rule.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def compiled(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compiled C: chunks of 16 tokens, the memory in the first-level cache, a hand-written backward."""
    return compiled_memory(q, k, v, beta, log_decay, state, True)


compiled.refuses(refusal)

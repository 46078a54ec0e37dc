"""Matrix memories in Triton, in float32: what serves where flash-linear-attention would round to bfloat16.

One kernel each way for the generalised delta rule. Tokens come one after the other, so it is slower a token than
products of chunks; its launches do not grow with the length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.triton_launch import block, cdiv, launch, mixed_types
from synthe_core.ops.triton_launch import refusal as triton_refusal

RANK = 25  # behind fla's (30), before the CPU's
MAX_KEY, COLUMNS, CHUNK = 256, 32, 32  # columns of a program; tokens between two states that are saved


def triton_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """o [B, T, H, V] and S_T [B, H, K, V] of the generalised delta rule; without a and b, of linear attention, and
    without a decay if `log_decay` [B, T, H, K] is None."""
    tensors = (q, k, v, a, b, log_decay, state)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return _Memory.apply(save, *tensors)


def refusal(hardware: Hardware, call: Call) -> str | None:
    """Why these kernels cannot serve a call of a matrix memory, or None."""
    key = call.arguments["k"].shape[-1]
    if key > MAX_KEY:
        return f"takes keys of up to {MAX_KEY} numbers, not {key}"
    return triton_refusal(hardware, call) or mixed_types(call)


class _Memory(torch.autograd.Function):
    """Saves its inputs and every 32nd state."""

    @staticmethod
    def forward(ctx: Any, save: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        from synthe_core.ops.triton_memory_kernels import memory_forward

        q, k, v, a, b, log_decay, state = (None if x is None else x.contiguous() for x in tensors)
        assert q is not None and k is not None and v is not None
        (batch, time, heads, key), value = q.shape, v.shape[-1]
        o, final = torch.empty_like(v), v.new_empty(batch, heads, key, value)
        chunks = cdiv(time, CHUNK)
        saved = v.new_empty(batch * heads, chunks, key, value) if save else final
        sizes = (time, heads, chunks, key, value)
        flags = {"LOW_RANK": a is not None, "DECAY": log_decay is not None}
        columns = block(value, COLUMNS if key <= 128 else COLUMNS // 2)
        blocks = {"CHUNK": CHUNK, "BK": block(key, MAX_KEY), "BV": columns}
        ctx.grid = (batch * heads, cdiv(value, columns))
        launch(
            memory_forward, ctx.grid, v, q, k, v, a, b, log_decay, state, o, final, saved, *sizes,
            **flags, HAS_STATE=state is not None, SAVE=save, **blocks,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, a, b, log_decay, saved)
        ctx.sizes, ctx.flags, ctx.blocks = sizes, flags, blocks
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, o_grad: Tensor | None, final_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        from synthe_core.ops.triton_memory_kernels import memory_backward

        q, k, v, a, b, log_decay, saved = ctx.saved_tensors
        key, value = k.shape[-1], v.shape[-1]
        o_grad, final_grad = (None if grad is None else grad.contiguous() for grad in (o_grad, final_grad))
        of_keys = v.new_zeros(ctx.grid[1], 5, *k.shape)
        of_v, of_state = torch.empty_like(v), v.new_empty(v.shape[0], v.shape[2], key, value)
        scratch = v.new_empty(ctx.grid[0], CHUNK, key, value)
        launch(
            memory_backward, ctx.grid, v, q, k, v, a, b, log_decay, saved, scratch, o_grad, final_grad,
            of_keys, of_v, of_state, *ctx.sizes, k.numel() // key,
            **ctx.flags, HAS_O=o_grad is not None, HAS_FINAL=final_grad is not None, **ctx.blocks,
        )  # fmt: skip
        of_q, of_k, of_a, of_b, of_decay = of_keys.sum(0).unbind() if len(of_keys) > 1 else of_keys[0].unbind()
        low_rank = (None, None) if a is None else (of_a, of_b)
        state_grad = of_state if ctx.needs_input_grad[7] else None
        return None, of_q, of_k, of_v, *low_rank, None if log_decay is None else of_decay, state_grad

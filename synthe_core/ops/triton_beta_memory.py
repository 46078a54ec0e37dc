"""Matrix memories written with a strength a token, in Triton: the delta rule, Kimi's, and linear attention.

As `triton_memory`, with the strength and the decay as learners have them: nothing is computed before the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.triton_launch import block, cdiv, launch
from synthe_core.ops.triton_memory import CHUNK, COLUMNS, MAX_KEY


def triton_beta_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    *,
    overwrite: bool,
) -> tuple[Tensor, Tensor]:
    """o [B, T, H, V] and S_T [B, H, K, V]; β [B, T, H], and log α [B, T, H], or [B, T, H, K], or None.

    With `overwrite` S_t = α S_{t-1} + β k (v - α kᵀ S_{t-1})ᵀ, else S_t = α S_{t-1} + β k vᵀ.
    """
    tensors = (q, k, v, beta, log_decay, state)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return _Memory.apply(save, overwrite, *tensors)


class _Memory(torch.autograd.Function):
    """Saves its inputs and every 32nd state."""

    @staticmethod
    def forward(ctx: Any, save: bool, overwrite: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        from synthe_core.ops.triton_beta_memory_kernels import beta_memory_forward

        q, k, v, beta, log_decay, state = (None if x is None else x.contiguous() for x in tensors)
        assert q is not None and v is not None
        (batch, time, heads, key), value = q.shape, v.shape[-1]
        o, final = torch.empty_like(v), v.new_empty(batch, heads, key, value)
        chunks = cdiv(time, CHUNK)
        saved = v.new_empty(batch * heads, chunks, key, value) if save else final
        sizes = (time, heads, chunks, key, value)
        flags = {"OVERWRITE": overwrite, "DECAY": 0 if log_decay is None else log_decay.dim() - 2}
        columns = block(value, COLUMNS if key <= 128 else COLUMNS // 2)
        blocks = {"CHUNK": CHUNK, "BK": block(key, MAX_KEY), "BV": columns}
        ctx.grid = (batch * heads, cdiv(value, columns))
        launch(
            beta_memory_forward, ctx.grid, v, q, k, v, beta, log_decay, state, o, final, saved, *sizes,
            **flags, HAS_STATE=state is not None, SAVE=save, **blocks,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, beta, log_decay, saved)
        ctx.sizes, ctx.flags, ctx.blocks = sizes, flags, blocks
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, o_grad: Tensor | None, final_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        from synthe_core.ops.triton_beta_memory_kernels import beta_memory_backward

        q, k, v, beta, log_decay, saved = ctx.saved_tensors
        key, value, programs = k.shape[-1], v.shape[-1], ctx.grid[1]
        o_grad, final_grad = (None if grad is None else grad.contiguous() for grad in (o_grad, final_grad))
        shared = [q, k, beta] if log_decay is None else [q, k, beta, log_decay]
        sizes = [x.numel() for x in shared]
        sums = v.new_empty(programs, sum(sizes))  # of each block of columns by itself
        if o_grad is None:
            sums[:, : sizes[0]] = 0  # nothing is read, and the kernel writes no gradient of q
        of_q, of_k, of_beta, *of_decay = sums[0].split(sizes)
        of_v, of_state = torch.empty_like(v), v.new_empty(v.shape[0], v.shape[2], key, value)
        scratch = v.new_empty(ctx.grid[0], CHUNK, key, value)
        launch(
            beta_memory_backward, ctx.grid, v, q, k, v, beta, log_decay, saved, scratch, o_grad, final_grad,
            of_q, of_k, of_v, of_beta, of_decay[0] if of_decay else None, of_state, *ctx.sizes, sums.stride(0),
            **ctx.flags, HAS_O=o_grad is not None, HAS_FINAL=final_grad is not None, **ctx.blocks,
        )  # fmt: skip
        whole = (sums.sum(0) if programs > 1 else sums[0]).split(sizes)
        of_q, of_k, of_beta, *of_decay = (part.view(x.shape) for part, x in zip(whole, shared, strict=True))
        state_grad = of_state if ctx.needs_input_grad[7] else None
        return None, None, of_q, of_k, of_v, of_beta, of_decay[0] if of_decay else None, state_grad

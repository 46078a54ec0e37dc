"""The span memory in Triton: one kernel each way, whatever the length and wherever spans end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.span_memory.reference import SpanOutput, SpanState, span_memory
from synthe_core.ops.triton_launch import FLOATS, RANK, block, interpreted, launch, mixed_types, refusal

MAX_SIZE = 64  # of keys and values: a program holds eight matrices of them
TILE, WARPS = 16, 8  # tokens of a product


@span_memory.kernel("triton", rank=RANK, tolerance=1e-4)
def triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rate: Tensor,
    sharpness: Tensor | None,
    decay: Tensor,
    momentum: Tensor | None,
    weight: Tensor,
    finished: Tensor,
    memory: Tensor,
    velocity: Tensor,
    pending: Tensor,
    tally: Tensor,
    span: int,
    online: bool = False,
) -> SpanOutput:
    """Triton: a row and head a program, which walks from span to span by itself. In training the host waits once, for
    the number of spans that end."""
    tensors = (query, key, value, rate, sharpness, decay, momentum, weight, memory, velocity, pending, tally)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    read, error, used, *state = _Spans.apply(finished, save, *tensors)
    return SpanOutput(read, error, used, SpanState(*state))


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if call.arguments.get("online"):
        return "written for steps at the end of a span, and the memory is written token by token"
    size = max(call.arguments["key"].shape[-1], call.arguments["value"].shape[-1])
    if size > MAX_SIZE:
        return f"written for keys and values of at most {MAX_SIZE} numbers, not {size}"
    return refusal(hardware, call, FLOATS if interpreted() else FLOATS[:1]) or mixed_types(call)


class _Spans(torch.autograd.Function):
    """Saves the memory of every span."""

    @staticmethod
    def forward(ctx: Any, finished: Tensor, save: bool, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        from synthe_core.ops.span_memory.triton_kernels import span_memory_forward

        inputs = [None if x is None else x.contiguous() for x in tensors]
        query, _, value, _, sharpness, _, momentum, _, *state = inputs
        assert query is not None and value is not None
        batch, time, heads, key_size = query.shape
        value_size = value.shape[-1]
        segments = 1 + int(finished.sum(1).max()) if save else 1
        outputs = [torch.empty_like(value), *query.new_empty(2, batch, time, heads)]
        after = [torch.empty_like(x) for x in state if x is not None]
        has_momentum = momentum is not None
        memories = query.new_empty(batch, heads, segments, key_size, value_size)
        velocities = torch.empty_like(memories) if save and has_momentum else memories
        starts, counts = (
            torch.zeros(batch, heads, size, dtype=torch.int32, device=query.device) for size in (segments, 1)
        )
        sizes = (time, heads, segments, key_size, value_size)
        flags = {"HAS_SHARPNESS": sharpness is not None, "HAS_MOMENTUM": has_momentum}
        blocks = {"BT": TILE, "BK": block(key_size, MAX_SIZE, 16), "BV": block(value_size, MAX_SIZE, 16)}
        launch(
            span_memory_forward, (batch, heads), query, *inputs[:8], finished.contiguous(), *state, *outputs, *after,
            memories, velocities, starts, counts, *sizes, **flags, SAVE=save, **blocks, num_warps=WARPS,
        )  # fmt: skip
        ctx.save_for_backward(*inputs[:8], *state, memories, velocities, starts, counts)
        ctx.sizes, ctx.flags, ctx.blocks = sizes, flags, blocks
        ctx.set_materialize_grads(False)
        return *outputs, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        from synthe_core.ops.span_memory.triton_gradients import span_memory_backward

        *inputs, memory, velocity, pending, tally, memories, velocities, starts, counts = ctx.saved_tensors
        query, key, value, rate, sharpness, decay, momentum, _ = inputs
        of_outputs = [None if grad is None else grad.contiguous() for grad in grads[:3]]
        states = (memory, velocity, pending, tally)
        of_state = [
            torch.zeros_like(x) if grad is None else grad.contiguous()
            for grad, x in zip(grads[3:], states, strict=True)
        ]
        results: list[Tensor | None] = [torch.empty_like(x) for x in (query, key, value, rate)]
        of_sharpness = query.new_empty(rate.shape[0], rate.shape[2])  # each row by itself
        of_decay, of_weight = torch.empty_like(decay), torch.empty_like(rate)
        of_momentum = None if momentum is None else torch.empty_like(momentum)
        results += [of_sharpness, of_decay, of_momentum, of_weight]
        of_states = [torch.empty_like(x) for x in states]
        names = ("HAS_READ", "HAS_ERROR", "HAS_USED")
        launch(
            span_memory_backward, tuple(rate.shape[::2]), query, *inputs, pending, tally, memories, velocities, starts,
            counts, *of_outputs, *of_state, *results, *of_states, *ctx.sizes,
            **ctx.flags, **{name: grad is not None for name, grad in zip(names, of_outputs, strict=True)}, **ctx.blocks,
            num_warps=WARPS,
        )  # fmt: skip
        results[4] = None if sharpness is None else of_sharpness.sum(0)
        results[7] = of_weight.sum(2)
        return None, None, *results, *of_states

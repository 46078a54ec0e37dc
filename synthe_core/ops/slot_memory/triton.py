"""The slot memory in Triton: one kernel each way, whatever the length."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.slot_memory.reference import SlotOutput, check, slot_memory
from synthe_core.ops.slot_memory.routing import Policy
from synthe_core.ops.triton_launch import FLOATS, RANK, block, interpreted, launch, mixed_types, refusal

MAX_SLOTS, MAX_SIZE, MAX_CHUNK, MAX_READS = 2048, 64, 64, 32
"""A program has a tile's logits to all slots in registers; keys, contents and the tokens of a tick are operands."""
TILE, SLOTS, WARPS = 16, 64, 16  # tokens and slots of a product


@slot_memory.kernel("triton", rank=RANK, tolerance=1e-4)
def triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    strength: Tensor,
    bank: Tensor,
    ages: Tensor,
    pending: Tensor,
    pending_strength: Tensor,
    start: Tensor,
    lengths: Tensor | None,
    policy: Policy,
    seed: int | None = None,
) -> SlotOutput:
    """Triton: a row a program, which walks from tick to tick by itself; back, a row and head."""
    check(query, bank, pending, policy)
    tensors = (query, key, value, strength, bank, pending, pending_strength)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return SlotOutput(*_Slots.apply(save, ages, start, lengths, policy, seed, *tensors))


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    bank, pending, key = (call.arguments[name] for name in ("bank", "pending", "key"))
    reads = call.arguments["policy"].reads
    size = max(key.shape[-1], bank.shape[-1] - key.shape[-1])
    for name, number, most in (
        ("slots", bank.shape[1], MAX_SLOTS),
        ("numbers in keys and contents", size, MAX_SIZE),
        ("tokens between two ticks", pending.shape[1], MAX_CHUNK),
        ("reads", reads, MAX_READS),
    ):
        if number > most:
            return f"written for at most {most} {name}, not {number}"
    return refusal(hardware, call, FLOATS if interpreted() else FLOATS[:1]) or mixed_types(call)


class _Slots(torch.autograd.Function):
    """Saves its inputs, the weights and slots read, and of each tick its plan and the records that it replaced."""

    @staticmethod
    def forward(
        ctx: Any,
        save: bool,
        ages: Tensor,
        start: Tensor,
        lengths: Tensor | None,
        policy: Policy,
        seed: int | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        from synthe_core.ops.slot_memory.triton_kernels import slot_memory_forward

        query, key, value, strength, bank, pending, pending_strength = (x.contiguous() for x in tensors)
        (batch, time, heads, size), slots, chunk = query.shape, bank.shape[1], pending.shape[1]
        ticks = (chunk - 1 + time) // chunk
        final, aged = (x.clone(memory_format=torch.contiguous_format) for x in (bank, ages))
        weights = query.new_empty(batch, time, heads, policy.reads)
        outputs = torch.empty_like(value), weights, torch.empty_like(weights, dtype=torch.int64)
        judged = query.new_empty(2, batch, time).unbind()
        rest = torch.empty_like(pending), torch.empty_like(pending_strength)
        blocks = {
            "BC": block(chunk, MAX_CHUNK, 16),
            "BK": block(size, MAX_SIZE, 16),
            "BV": block(value.shape[-1], MAX_SIZE, 16),
            "BN": block(policy.reads, MAX_READS, 2),
        }
        scratch = query.new_empty(batch, TILE, slots), query.new_empty(batch, 2, blocks["BC"])
        nearest = start.new_empty(batch, blocks["BC"], dtype=torch.int32)
        before = query.new_empty(batch, ticks if save else 1, chunk, *bank.shape[2:])
        plans = start.new_empty(3, batch, ticks, chunk, dtype=torch.int32).unbind()
        sizes = (time, heads, slots, chunk, size, value.shape[-1], ticks)
        rates = {  # as constants they are not rounded to float32
            "log_decay": math.log(policy.decay),
            "fair": (1 - policy.decay) * slots,
            "match": policy.match,
            "penalty": policy.staleness / policy.horizon,
        }
        flags = {"READS": policy.reads, "SPARSE": policy.router == "sparsemax", "HAS_LENGTHS": lengths is not None}
        launch(
            slot_memory_forward, (batch,), query, query, key, value, strength, final, aged, pending, pending_strength,
            start, lengths, *outputs, *judged, *rest, *scratch, nearest, before, *plans, *sizes, seed or 0,
            **rates, WRITES=policy.writes, NOISE=seed is not None, SAVE=save, **flags, BT=TILE, BS=SLOTS,
            BJ=block(slots, MAX_SLOTS, 16), **blocks, num_warps=WARPS,
        )  # fmt: skip
        ctx.save_for_backward(
            query, key, value, strength, pending, pending_strength, start, lengths, *outputs[1:], before, *plans, final
        )
        ctx.sizes, ctx.flags, ctx.blocks = sizes, flags, blocks
        ctx.mark_non_differentiable(outputs[2], *judged, aged)
        ctx.set_materialize_grads(False)
        return *outputs, *judged, final, aged, *rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        from synthe_core.ops.slot_memory.triton_gradients import slot_memory_backward

        *inputs, final = ctx.saved_tensors
        query, key, value, strength, pending, pending_strength = inputs[:6]
        batch, time, heads = query.shape[:3]
        read_grad, weight_grad = (None if grad is None else grad.contiguous() for grad in grads[:2])
        bank_grad, pending_grad, strength_grad = (
            torch.zeros_like(x) if grad is None else grad.clone(memory_format=torch.contiguous_format)
            for grad, x in zip((grads[5], *grads[7:]), (final, pending, pending_strength), strict=True)
        )
        of_tokens = [torch.empty_like(x) for x in (query, key, value)]
        of_strength = strength.new_empty(batch, heads, time)  # each head by itself
        of_pending, of_pending_strength = torch.zeros_like(pending), strength.new_zeros(batch, heads, pending.shape[1])
        launch(
            slot_memory_backward, (batch, heads), query, *inputs, final.clone(), bank_grad, read_grad, weight_grad,
            pending_grad, strength_grad, *of_tokens, of_strength, of_pending, of_pending_strength, *ctx.sizes,
            **ctx.flags, HAS_READ=read_grad is not None, HAS_WEIGHT=weight_grad is not None, **ctx.blocks,
            num_warps=WARPS // 2,
        )  # fmt: skip
        of_sums = of_strength.sum(1), bank_grad, of_pending, of_pending_strength.sum(1)
        return *[None] * 6, *of_tokens, *of_sums

"""The slot memory compiled for the CPU, token by token: a clock of one token costs what a clock of 32 does."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call
from synthe_core.ops.native import function, pointer, refusal
from synthe_core.ops.slot_memory.reference import SlotOutput, check, slot_memory
from synthe_core.ops.slot_memory.routing import Policy

SOURCE = "slot_memory/slot_memory.c"


class _Sizes(ctypes.Structure):
    """Rows, tokens, slots, heads, sizes of keys and contents, tokens of a tick, reads, writes, ticks of a row."""

    _fields_ = [(name, ctypes.c_int64) for name in ("B", "T", "J", "H", "K", "V", "C", "N", "W", "G")]


class _Policy(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_double) for name in ("match", "decay", "idle")), ("sparsemax", ctypes.c_int64)]

    @classmethod
    def of(cls, policy: Policy) -> _Policy:
        idle = policy.staleness / policy.horizon
        return cls(policy.match, policy.decay, idle, policy.router == "sparsemax")


@slot_memory.kernel("native", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
def native(
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
    """C: keys in tiles of 16 slots, four tokens at a time; the bank is written in place and restored on the way
    back."""
    check(query, bank, pending, policy)
    return SlotOutput(
        *_Native.apply(query, key, value, strength, bank, ages, pending, pending_strength, start, lengths, policy)
    )


@native.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if call.arguments.get("seed") is not None:
        return "Gumbel noise is drawn by torch"
    return refusal(hardware, call.device, SOURCE)


class _Native(torch.autograd.Function):
    """Saves its inputs, the slots read, and of each tick the records that it replaced."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *floats, start, lengths, policy = arguments
        query, key, value, strength, bank, ages, pending, pending_strength = floats
        batch, time, heads, size = query.shape
        slots, chunk, content = bank.shape[1], pending.shape[1], value.shape[-1]
        offset = start % chunk
        ticks = int((offset + (time if lengths is None else lengths)).max()) // chunk
        sizes = _Sizes(batch, time, slots, heads, size, content, chunk, policy.reads, policy.writes, ticks)
        start, lengths = start.contiguous(), None if lengths is None else lengths.contiguous()
        tokens = [x.contiguous() for x in (query, key, value, strength)]
        after = bank.clone(memory_format=torch.contiguous_format) if ticks else bank.contiguous()
        aged = ages.clone(memory_format=torch.contiguous_format)
        place = torch.arange(chunk) < offset[:, None]
        frame = (pending * place[..., None, None]).contiguous()
        frame_strength = (pending_strength * place).contiguous()
        read = torch.zeros_like(tokens[2])
        weight = read.new_zeros(batch, time, heads, policy.reads)
        slot = torch.zeros(weight.shape, dtype=torch.int64)
        affinity, novelty = read.new_zeros(2, batch, time)
        tick = (batch, ticks, chunk)
        kind, target = torch.zeros(tick, dtype=torch.uint8), torch.zeros(tick, dtype=torch.int64)
        needed = any(ctx.needs_input_grad)
        before = read.new_empty(*tick, heads, size + content) if needed else None
        scratch = function(SOURCE, "scratch", query.dtype)
        scratch.restype = ctypes.c_int64
        memory = read.new_empty(batch, scratch(sizes))
        best, refined = torch.empty(batch, chunk, dtype=torch.int64), torch.zeros(batch, slots, dtype=torch.uint8)
        outputs = (read, weight, slot, affinity, novelty, kind, target, before, memory, best, refined)
        tensors = [*tokens, after, aged, frame, frame_strength, start, lengths, *outputs]
        function(SOURCE, "forward", query.dtype)(*map(pointer, tensors), sizes, _Policy.of(policy))
        if needed:
            saved = (*tokens, pending.contiguous(), pending_strength.contiguous(), start, lengths)
            ctx.save_for_backward(*saved, weight, slot, kind, target, before, after)
            ctx.sizes, ctx.policy = sizes, policy
            ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(slot, affinity, novelty, aged)
        return read, weight, slot, affinity, novelty, after if ticks else bank, aged, frame, frame_strength

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *saved, after = ctx.saved_tensors
        query, key, value, strength, pending, pending_strength, *_ = saved
        given = [None if grad is None else grad.contiguous() for grad in (grads[0], grads[1])]
        bank = after.clone()
        carried = [
            torch.zeros_like(like) if grad is None else grad.clone(memory_format=torch.contiguous_format)
            for grad, like in zip((grads[5], *grads[7:]), (after, pending, pending_strength), strict=True)
        ]
        tokens = [torch.zeros_like(x) for x in (query, key, value, strength)]
        tensors = [*saved, *given, bank, *carried, *tokens]
        function(SOURCE, "backward", query.dtype)(*map(pointer, tensors), ctx.sizes, _Policy.of(ctx.policy))
        bank_grad, frame_grad, strength_grad = carried
        return *tokens, bank_grad, None, frame_grad, strength_grad, None, None, None

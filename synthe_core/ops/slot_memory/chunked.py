"""The slot memory by frames of its clock, in torch, for any device.

Tokens are laid out in frames of C places, aligned with the clock of their own row, the pending ones in front. The bank
changes at ticks only, so a frame's reads and affinities are matrix products and its writes one scatter. Slots that are
not selected cost no gradient: the bank is written in place, each tick's old records are saved, and the backward pass
restores them, tick by tick, while it carries one gradient of the bank.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.frames import (
    FrameLayout,
    add_columns,
    add_rows,
    entry_at,
    gather_padded,
    gather_rows,
    may_read_sizes,
)
from synthe_core.ops.linear import linear
from synthe_core.ops.slot_memory.reference import SlotOutput, check, slot_memory
from synthe_core.ops.slot_memory.routing import (
    READ_USE,
    SINCE_READ,
    SINCE_WRITE,
    WRITE_USE,
    Policy,
    gumbel,
    route,
    usefulness,
)


class Reads(NamedTuple):
    """The reads of a pass in its G frames of C places; c = C reads a frame, or 1 when decoding.

    real [B, G, c]: which reads are of this pass's real tokens. place [B, c]: their places in the frame. position
    [B, G, c]: their positions in the sequence. full [B, G]: which frames end with a tick. ticks: how many can. partial:
    whether a frame that can end with a tick may do so in no row.
    """

    real: Tensor
    place: Tensor
    position: Tensor
    full: Tensor
    ticks: int
    partial: bool


@slot_memory.kernel("chunked", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def chunked(
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
    """Torch: matrix products from tick to tick, the bank written in place and restored by a hand-written backward."""
    check(query, bank, pending, policy)
    time, size = query.shape[1], pending.shape[1]
    offset = (start % size)[:, None]
    end = offset + (time if lengths is None else lengths[:, None])
    latest = 0 if time == 1 else size - 1
    if time > 1 and may_read_sizes(offset):
        latest = int(offset.max())  # a pass that begins at a tick has a frame less
    frames = (latest + time - 1) // size + 1
    layout = FrameLayout.aligned(offset, end, time, size, frames)
    if time == 1:
        queries, place = query, offset
    else:
        place = torch.arange(frames * size, device=query.device).expand(query.shape[0], -1)
        queries = gather_rows(query, (place - offset).clamp(0, time - 1))
    split = (frames, place.shape[1] // frames)
    reads = Reads(
        ((place >= offset) & (place < end)).unflatten(1, split),
        place[:, : split[1]],
        (start[:, None] - offset + place).unflatten(1, split),
        end >= torch.arange(1, frames + 1, device=query.device) * size,
        1 if time == 1 else (latest + time) // size,
        time < size and may_read_sizes(offset),
    )
    records = torch.cat([pending, torch.cat([key, value], -1)], 1)
    strengths = torch.cat([pending_strength, strength], 1)
    framed = queries.unflatten(1, split), layout.split(records), layout.split(strengths)
    *outputs, final, aged = ChunkedSlotMemory.apply(*framed, bank, ages, reads, policy, seed)
    read, weights, slots, affinity, novelty = (x.flatten(1, 2) if time == 1 else layout.join(x) for x in outputs)
    last = torch.div(end, size, rounding_mode="floor") * size + torch.arange(size, device=end.device)
    left = entry_at(last, offset, end, time, size)
    rest = gather_padded(records, left), gather_padded(strengths, left)
    return SlotOutput(read, weights, slots, affinity, novelty, final, aged, *rest)


class ChunkedSlotMemory(torch.autograd.Function):
    """Saves its inputs, the slots read, and of each tick the records that it replaced."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        record: Tensor,
        strength: Tensor,
        bank: Tensor,
        ages: Tensor,
        reads: Reads,
        policy: Policy,
        seed: int | None,
    ) -> tuple[Tensor, ...]:
        """query [B, G, c, H, K], record [B, G, C, H, K + V], strength [B, G, C]; the rest as in `slot_memory`.

        Returns read, weight, slot, affinity and novelty [B, G, c, ...], then bank and ages.
        """
        slots, size = bank.shape[1], query.shape[-1]
        copied = False  # once True, `bank` is a copy with one slot more, which takes the records that are not written
        outputs, writes = [], {}
        for n in range(query.shape[1]):
            position = reads.position[:, n]
            slot = select_slots(query[:, n], bank[:, :slots, :, :size], position, policy, seed)
            noise = slot_noise(slot, slots, position, seed, query.dtype)
            read, weight = read_slots(query[:, n], gather_records(bank, slot), noise, policy)
            ages = ages_after_reads(ages, slot, weight, reads.real[:, n], policy)
            keys, whole = record[:, n, ..., :size], query.shape[2] == record.shape[2]
            new = keys if whole else gather_rows(keys, reads.place)
            match = KeyMatch.of(new, keys, reads.place, bank[:, :slots, :, :size])
            outputs.append((read, weight, slot, match.affinity, match.novelty))
            due = reads.full[:, n, None]
            if n < reads.ticks and not (reads.partial and not bool(due.any())):
                if not whole:
                    places = torch.arange(record.shape[2], device=keys.device)[None]
                    match = KeyMatch.of(keys, keys, places, bank[:, :slots, :, :size])
                write, ages = Write.plan(match, due, strength[:, n], ages, policy)
                if not copied:
                    bank, copied = torch.cat([bank, torch.zeros_like(bank[:, :1])], 1), True
                before = gather_rows(bank, write.target)
                after = updated_records(before, record[:, n], strength[:, n], write, size)
                bank.flatten(0, 1).index_copy_(0, slot_rows(write.target, slots + 1), after.flatten(0, 1))
                writes[n] = (before, *write)
        read, weight, slot, affinity, novelty = (torch.stack(each, 1) for each in zip(*outputs, strict=True))
        final = bank[:, :slots].contiguous() if copied else bank
        saved = [tensor for n in writes for tensor in writes[n]]
        ctx.save_for_backward(query, record, strength, slot, final, reads.position, *saved)
        ctx.ticks, ctx.policy, ctx.seed = list(writes), policy, seed
        ctx.mark_non_differentiable(slot, affinity, novelty, ages)
        return read, weight, slot, affinity, novelty, final, ages

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return ChunkedSlotMemory.gradients(ctx, grads[0], grads[1], grads[-2])

    @staticmethod
    def gradients(ctx: Any, read_grad: Tensor, weight_grad: Tensor, final_grad: Tensor) -> tuple[Tensor | None, ...]:
        """From the last frame to the first: its tick is undone, then its reads add to the gradient of the bank."""
        query, record, strength, slot, final, position, *saved = ctx.saved_tensors
        slots, size = final.shape[1], query.shape[-1]
        spare = torch.zeros_like(final[:, :1])
        bank, bank_grad = torch.cat([final, spare], 1), torch.cat([final_grad, spare], 1)
        query_grad, record_grad = torch.empty_like(query), torch.zeros_like(record)
        strength_grad = torch.zeros_like(strength)
        width = len(Write._fields) + 1
        ticks = {n: saved[i * width : (i + 1) * width] for i, n in enumerate(ctx.ticks)}
        for n in reversed(range(query.shape[1])):
            if n in ticks:
                before, *fields = ticks[n]
                write = Write(*fields)
                index = slot_rows(write.target, slots + 1)
                leaves = detached_leaves(before, record[:, n], strength[:, n])
                with torch.enable_grad():
                    after = updated_records(leaves[0], leaves[1], leaves[2], write, size)
                old_grad, record_grad[:, n], strength_grad[:, n] = torch.autograd.grad(
                    after, leaves, gather_rows(bank_grad, write.target)
                )
                for rows, values in ((bank, before), (bank_grad, old_grad)):
                    rows.flatten(0, 1).index_copy_(0, index, values.flatten(0, 1))
                bank_grad[:, slots] = 0  # of the records that were not written
            noise = slot_noise(slot[:, n], slots, position[:, n], ctx.seed, query.dtype)
            queries, records = detached_leaves(query[:, n], gather_records(bank, slot[:, n]))
            with torch.enable_grad():
                outputs = read_slots(queries, records, noise, ctx.policy)
            output_grads = (read_grad[:, n], weight_grad[:, n])
            query_grad[:, n], records_grad = torch.autograd.grad(outputs, (queries, records), output_grads)
            index = head_rows(slot[:, n], slots + 1)
            add_rows(bank_grad.flatten(0, 2), index, records_grad.flatten(0, 3))
        return query_grad, record_grad, strength_grad, bank_grad[:, :slots], None, None, None, None


def detached_leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as leaves of a graph of their own."""
    return tuple(x.detach().requires_grad_() for x in tensors)


def slot_rows(slot: Tensor, slots: int) -> Tensor:
    """Slots int64 [B, ...] as rows of a flattened bank of `slots`."""
    rows = torch.arange(slot.shape[0], device=slot.device) * slots
    return (rows.view(-1, *[1] * (slot.dim() - 1)) + slot).flatten()


def head_rows(slot: Tensor, slots: int) -> Tensor:
    """Slots int64 [B, c, H, N] as rows of a bank flattened over slots and heads: head h reads its own part."""
    heads = torch.arange(slot.shape[2], device=slot.device)[:, None]
    return (slot_rows(slot, slots).view_as(slot) * slot.shape[2] + heads).flatten()


def gather_records(bank: Tensor, slot: Tensor) -> Tensor:
    """The records [B, c, H, N, K + V] of the slots int64 [B, c, H, N]."""
    return bank.flatten(0, 2).index_select(0, head_rows(slot, bank.shape[1])).unflatten(0, slot.shape)


def select_slots(query: Tensor, keys: Tensor, position: Tensor, policy: Policy, seed: int | None) -> Tensor:
    """The slots int64 [B, c, H, N] of largest logit for each query [B, c, H, K], in a bank with keys [B, J, H, K]."""
    selected, slots = [], keys.shape[1]
    for head in range(query.shape[2]):
        logits = query[:, :, head] @ keys[:, :, head].mT
        if seed is not None:
            choice = torch.arange(head * slots, (head + 1) * slots, device=query.device).expand_as(logits)
            logits += gumbel(seed, position, choice, logits.dtype)
        selected.append(logits.topk(policy.reads).indices)
    return torch.stack(selected, 2)


def slot_noise(slot: Tensor, slots: int, position: Tensor, seed: int | None, dtype: torch.dtype) -> Tensor | None:
    """The Gumbel noise of the selected slots; None without a seed."""
    if seed is None:
        return None
    heads = torch.arange(slot.shape[2], device=slot.device)[:, None]
    return gumbel(seed, position, heads * slots + slot, dtype)


def read_slots(query: Tensor, records: Tensor, noise: Tensor | None, policy: Policy) -> tuple[Tensor, Tensor]:
    """The readings and weights of queries [B, c, H, K] over their selected records [B, c, H, N, K + V]."""
    keys, contents = records.split((query.shape[-1], records.shape[-1] - query.shape[-1]), -1)
    logits = (keys * query[..., None, :]).sum(-1)
    weight = route(logits if noise is None else logits + noise, policy.router)
    return (weight[..., None] * contents).sum(-2), weight


def ages_after_reads(ages: Tensor, slot: Tensor, weight: Tensor, real: Tensor, policy: Policy) -> Tensor:
    """Ages [B, J, 4] after the reads of a frame's real tokens, bool [B, c]."""
    slots, heads = ages.shape[1], slot.shape[2]
    count = real.sum(1, keepdim=True)
    later = (count - real.cumsum(1)).to(ages.dtype)  # tokens that come after each
    rate = (math.log(policy.decay) * later).exp() * ((1 - policy.decay) * slots / heads) * real
    used = (weight * rate[..., None, None]).flatten(1)
    share = add_columns(ages.new_zeros(ages.shape[:2]), slot.flatten(1), used)
    elapsed = torch.where((weight > 0) & real[..., None, None], later[..., None, None], torch.inf)
    since = torch.full_like(share, torch.inf).scatter_reduce_(1, slot.flatten(1), elapsed.flatten(1), "amin")
    since_read, since_write, read_use, write_use = ages.unbind(-1)
    fade = (math.log(policy.decay) * count.to(ages.dtype)).exp()  # torch.pow rounds by the place in a tensor
    columns = (
        torch.minimum(since, since_read + count),
        since_write + count,
        fade * read_use + share,
        fade * write_use,
    )
    return torch.stack(columns, -1)


class KeyMatch(NamedTuple):
    """Each token's largest affinity to a slot, that slot, and the largest to an earlier token of its frame, or -2."""

    affinity: Tensor
    slot: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, keys: Tensor, frame: Tensor, place: Tensor, slots: Tensor) -> KeyMatch:
        """keys [B, c, H, K] at places `place` of a frame's keys [B, C, H, K], against those of slots [B, J, H, K]."""
        heads = keys.shape[2]
        to_slots = keys[:, :, 0] @ slots[:, :, 0].mT
        for head in range(1, heads):
            to_slots.baddbmm_(keys[:, :, head], slots[:, :, head].mT)
        affinity, slot = to_slots.max(-1)
        to_tokens = keys.flatten(2) @ frame.flatten(2).mT / heads
        places = torch.arange(frame.shape[1], device=keys.device)
        nearest = to_tokens.masked_fill_(places >= place[..., None], -2).amax(-1)
        return cls(affinity / heads, slot, nearest)

    @property
    def novelty(self) -> Tensor:
        return 1 - torch.maximum(self.affinity, self.nearest)


class Write(NamedTuple):
    """A tick's writes, for the C tokens of a frame.

    target int64 [B, C]: the slot whose new record is computed at the token's place, J for none; where several tokens
    refine a slot, at the last of them. refines int64 [B, C]: the slot that the token refines, -1 for none. overwrites
    bool [B, C]: whether the token replaces its target's record.
    """

    target: Tensor
    refines: Tensor
    overwrites: Tensor

    @classmethod
    def plan(cls, match: KeyMatch, due: Tensor, strength: Tensor, ages: Tensor, policy: Policy) -> tuple[Write, Tensor]:
        """The writes of a tick in the rows that are `due`, bool [B, 1], and the ages after it."""
        slots = ages.shape[1]
        refine = due & (match.affinity >= policy.match)
        novel = due & ~refine & (match.nearest < policy.match)
        refines = torch.where(refine, match.slot, -1)
        order = match.novelty.masked_fill(~novel, -torch.inf).sort(descending=True, stable=True).indices
        order = order[:, : policy.writes]
        refined = torch.zeros_like(ages[..., 0]).scatter_add_(1, match.slot, refine.to(ages.dtype)) > 0
        worth, least_useful = usefulness(ages, policy).masked_fill(refined, torch.inf).sort(stable=True)
        allowed = novel.gather(1, order) & worth[:, : policy.writes].isfinite()
        taken = torch.where(allowed, least_useful[:, : policy.writes], slots)

        last = refine & ~same_slot(refines).triu(1).any(-1)
        target = torch.where(last, refines, torch.full_like(refines, slots).scatter_(1, order, taken))
        overwrites = torch.zeros_like(novel).scatter_(1, order, allowed)

        touched = torch.where(refine, refines, target)
        amount = strength * (refine | overwrites)
        mass = add_columns(ages.new_zeros(ages.shape[0], slots + 1), touched, amount)[:, :slots]
        replaced = refined.new_zeros(ages.shape[0], slots + 1).scatter_(1, taken, True)[:, :slots]
        since_read, since_write, read_use, write_use = ages.unbind(-1)
        columns = {
            SINCE_READ: since_read.masked_fill(replaced, 0),
            SINCE_WRITE: since_write.masked_fill(replaced | refined, 0),
            READ_USE: read_use.masked_fill(replaced, 1),
            WRITE_USE: write_use + (1 - policy.decay) * slots * mass,
        }
        return cls(target, refines, overwrites), torch.stack([columns[i] for i in range(4)], -1)


def same_slot(refines: Tensor) -> Tensor:
    """bool [B, C, C]: both tokens refine the same slot."""
    return (refines[:, :, None] == refines[:, None]) & (refines >= 0)[..., None]


def updated_records(before: Tensor, record: Tensor, strength: Tensor, write: Write, size: int) -> Tensor:
    """The new records [B, C, H, K + V] of the targets, whose old ones are `before`.

    A record refined by the tokens t1 < t2 < ... in turn is the sum of Π(1 - s) of itself and of s_t Π_{later u} (1 -
    s_u) of each token t.
    """
    same = same_slot(write.refines).to(strength.dtype)
    log_keep = same * torch.log1p(-strength)[:, None]
    later = linear(log_keep, torch.ones_like(same[0]).triu(1))
    share = same * later.exp() * strength[:, None]
    keep = log_keep.sum(-1).exp()[..., None, None]
    refined = keep * before + (share @ record.flatten(2)).view_as(before)
    key, value = record.split((size, record.shape[-1] - size), -1)
    overwritten = torch.cat([key, strength[..., None, None] * value], -1)
    return torch.where(write.overwrites[..., None, None], overwritten, refined)

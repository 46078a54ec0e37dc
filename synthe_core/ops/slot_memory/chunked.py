"""The slot memory by chunks of its clock, in torch, for any device.

Tokens are laid out in frames of C, aligned with the clock of their own row, the pending ones in front. Between two
ticks the bank holds still, so a frame's reads and affinities are matrix products and its writes one scatter. Slots that
are not chosen cost no gradient: the bank is written in place, each tick's old records are kept, and the backward pass
puts them back, tick by tick, while it carries one gradient of the bank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.slot_memory.reference import Recalled, check, slot_memory
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


class Frames(NamedTuple):
    """What a pass knows of its G frames of C places; c = C reads a frame, or 1 when decoding.

    fresh [B, G, c]: which reads are of this pass's real tokens. phase [B, c]: their places in the frame. position
    [B, G, c]: where in the sequence. full [B, G]: which frames end with a tick. ticks: how many can. checked: whether
    to look if any does.
    """

    fresh: Tensor
    phase: Tensor
    position: Tensor
    full: Tensor
    ticks: int
    checked: bool


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Entries `index` int64 [B, M] of each row of x [B, N, ...]: [B, M, ...]."""
    batch, count = x.shape[:2]
    rows = torch.arange(batch, device=x.device)[:, None] * count
    return x.flatten(0, 1).index_select(0, (rows + index).flatten()).unflatten(0, index.shape)


@slot_memory.kernel("chunked", rank=10, tolerance=1e-5)
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
) -> Recalled:
    """Torch: matrix products from tick to tick, the bank written in place and taken back by a hand-written backward."""
    check(query, bank, pending, policy)
    time, chunk = query.shape[1], pending.shape[1]
    offset = (start % chunk)[:, None]
    end = offset + (time if lengths is None else lengths[:, None])
    records = torch.cat([pending, torch.cat([key, value], -1)], 1)
    strengths = torch.cat([pending_strength, strength], 1)

    def tokens_at(place: Tensor) -> tuple[Tensor, Tensor]:
        """Records and strengths at places counted from the start of the first frame; zeros where no token is."""
        source = torch.where(place < offset, place, place + chunk - offset).clamp_max(chunk + time - 1)
        there = place < end
        found = pick(records, source), pick(strengths, source)
        return found[0] * there[..., None, None], found[1] * there

    latest = 0 if time == 1 else int(offset.max())  # a pass that begins at a tick has a frame less
    count = (latest + time - 1) // chunk + 1
    place = torch.arange(count * chunk, device=query.device).expand(query.shape[0], -1)
    record, force = (x.unflatten(1, (count, chunk)) for x in tokens_at(place))
    ends = torch.arange(1, count + 1, device=query.device) * chunk
    if time == 1:
        queries, read_at = query, offset
    else:
        queries, read_at = pick(query, (place - offset).clamp(0, time - 1)), place
    split = (count, read_at.shape[1] // count)
    frames = Frames(
        ((read_at >= offset) & (read_at < end)).unflatten(1, split),
        read_at[:, : split[1]],
        (start[:, None] - offset + read_at).unflatten(1, split),
        end >= ends,
        1 if time == 1 else (latest + time) // chunk,
        time < chunk,
    )
    *told, final, aged = Ticking.apply(queries.unflatten(1, split), record, force, bank, ages, frames, policy, seed)
    if time > 1:
        back = offset + place[:, :time]
        told = [pick(x, back) for x in told]
    left = torch.div(end, chunk, rounding_mode="floor") * chunk
    read, weights, slots, affinity, novelty = told
    return Recalled(read, weights, slots, affinity, novelty, final, aged, *tokens_at(left + place[:, :chunk]))


class Ticking(torch.autograd.Function):
    """Keeps its inputs, the slots read, and of each tick the records that it replaced."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        record: Tensor,
        strength: Tensor,
        bank: Tensor,
        ages: Tensor,
        frames: Frames,
        policy: Policy,
        seed: int | None,
    ) -> tuple[Tensor, ...]:
        """query [B, G, c, H, K], record [B, G, C, H, K + V], strength [B, G, C]; the rest as in `slot_memory`."""
        slots, size = bank.shape[1], query.shape[-1]
        mine = False  # once True, the bank is a copy with a slot more: there go the records that nobody wrote
        told, writes = [], {}
        for n in range(query.shape[1]):
            position = frames.position[:, n]
            slot = chosen(query[:, n], bank[:, :slots, :, :size], position, policy, seed)
            noise = noise_of(slot, slots, position, seed, query.dtype)
            read, weight = recall(query[:, n], gathered(bank, slot), noise, policy)
            ages = read_ages(ages, slot, weight, frames.fresh[:, n], policy)
            keys, whole = record[:, n, ..., :size], query.shape[2] == record.shape[2]
            new = keys if whole else pick(keys, frames.phase)
            judged = Judged.of(new, keys, frames.phase, bank[:, :slots, :, :size])
            told.append((read, weight, slot, judged.affinity, judged.novelty))
            due = frames.full[:, n, None]
            if n < frames.ticks and not (frames.checked and not bool(due.any())):
                if not whole:
                    everywhere = torch.arange(record.shape[2], device=keys.device)[None]
                    judged = Judged.of(keys, keys, everywhere, bank[:, :slots, :, :size])
                write, ages = Write.decided(judged, due, strength[:, n], ages, policy)
                if not mine:
                    bank, mine = torch.cat([bank, torch.zeros_like(bank[:, :1])], 1), True
                before = pick(bank, write.target)
                after = written(before, record[:, n], strength[:, n], write, size)
                bank.flatten(0, 1).index_copy_(0, flat(write.target, slots + 1), after.flatten(0, 1))
                writes[n] = (before, *write)
        read, weight, slot, affinity, novelty = (torch.stack(each, 1) for each in zip(*told, strict=True))
        final = bank[:, :slots].contiguous() if mine else bank
        kept = [tensor for n in writes for tensor in writes[n]]
        ctx.save_for_backward(query, record, strength, slot, final, frames.position, *kept)
        ctx.ticks, ctx.policy, ctx.seed = list(writes), policy, seed
        read, weight, slot, affinity, novelty = (x.flatten(1, 2) for x in (read, weight, slot, affinity, novelty))
        ctx.mark_non_differentiable(slot, affinity, novelty, ages)
        return read, weight, slot, affinity, novelty, final, ages

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return Ticking.gradients(ctx, grads[0], grads[1], grads[-2])

    @staticmethod
    def gradients(ctx: Any, read_grad: Tensor, weight_grad: Tensor, final_grad: Tensor) -> tuple[Tensor | None, ...]:
        """From the last frame to the first: its tick is undone, then its reads give what they owe to the bank."""
        query, record, strength, slot, final, position, *kept = ctx.saved_tensors
        slots, size = final.shape[1], query.shape[-1]
        trash = torch.zeros_like(final[:, :1])
        bank, bank_grad = torch.cat([final, trash], 1), torch.cat([final_grad, trash], 1)
        query_grad, record_grad = torch.empty_like(query), torch.zeros_like(record)
        strength_grad = torch.zeros_like(strength)
        read_grad, weight_grad = (x.unflatten(1, query.shape[1:3]) for x in (read_grad, weight_grad))
        width = len(Write._fields) + 1
        ticks = {n: kept[i * width : (i + 1) * width] for i, n in enumerate(ctx.ticks)}
        for n in reversed(range(query.shape[1])):
            if n in ticks:
                before, *decided = ticks[n]
                write = Write(*decided)
                index = flat(write.target, slots + 1)
                leaves = leaf(before, record[:, n], strength[:, n])
                with torch.enable_grad():
                    after = written(leaves[0], leaves[1], leaves[2], write, size)
                old_grad, record_grad[:, n], strength_grad[:, n] = torch.autograd.grad(
                    after, leaves, pick(bank_grad, write.target)
                )
                for rows, put in ((bank, before), (bank_grad, old_grad)):
                    rows.flatten(0, 1).index_copy_(0, index, put.flatten(0, 1))
                bank_grad[:, slots] = 0  # where the rows went that nobody wrote
            noise = noise_of(slot[:, n], slots, position[:, n], ctx.seed, query.dtype)
            asked, records = leaf(query[:, n], gathered(bank, slot[:, n]))
            with torch.enable_grad():
                outputs = recall(asked, records, noise, ctx.policy)
            slopes = (read_grad[:, n], weight_grad[:, n])
            query_grad[:, n], records_grad = torch.autograd.grad(outputs, (asked, records), slopes)
            index = headed(slot[:, n], slots + 1)
            bank_grad.flatten(0, 2).index_add_(0, index, records_grad.flatten(0, 3))
        return query_grad, record_grad, strength_grad, bank_grad[:, :slots], None, None, None, None


def leaf(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_() for x in tensors)


def flat(slot: Tensor, slots: int) -> Tensor:
    """Slots int64 [B, ...] as rows of a flattened bank of `slots`."""
    rows = torch.arange(slot.shape[0], device=slot.device) * slots
    return (rows.view(-1, *[1] * (slot.dim() - 1)) + slot).flatten()


def headed(slot: Tensor, slots: int) -> Tensor:
    """Slots int64 [B, c, H, N] as rows of a bank flattened over slots and heads: head h reads its own part."""
    heads = torch.arange(slot.shape[2], device=slot.device)[:, None]
    return (flat(slot, slots).view_as(slot) * slot.shape[2] + heads).flatten()


def gathered(bank: Tensor, slot: Tensor) -> Tensor:
    """The records [B, c, H, N, K + V] of the slots int64 [B, c, H, N]."""
    return bank.flatten(0, 2).index_select(0, headed(slot, bank.shape[1])).unflatten(0, slot.shape)


def chosen(query: Tensor, keys: Tensor, position: Tensor, policy: Policy, seed: int | None) -> Tensor:
    """The slots [B, c, H, N] that each query [B, c, H, K] reads of a bank with keys [B, J, H, K]."""
    found, slots = [], keys.shape[1]
    for head in range(query.shape[2]):
        logits = query[:, :, head] @ keys[:, :, head].mT
        if seed is not None:
            choice = torch.arange(head * slots, (head + 1) * slots, device=query.device).expand_as(logits)
            logits += gumbel(seed, position, choice, logits.dtype)
        found.append(logits.topk(policy.reads).indices)
    return torch.stack(found, 2)


def noise_of(slot: Tensor, slots: int, position: Tensor, seed: int | None, dtype: torch.dtype) -> Tensor | None:
    """The Gumbel noise of the slots that were chosen."""
    if seed is None:
        return None
    heads = torch.arange(slot.shape[2], device=slot.device)[:, None]
    return gumbel(seed, position, heads * slots + slot, dtype)


def recall(query: Tensor, records: Tensor, noise: Tensor | None, policy: Policy) -> tuple[Tensor, Tensor]:
    """What queries [B, c, H, K] read of the records [B, c, H, N, K + V] that they chose, and with what weights."""
    keys, contents = records.split((query.shape[-1], records.shape[-1] - query.shape[-1]), -1)
    logits = (keys * query[..., None, :]).sum(-1)
    weight = route(logits if noise is None else logits + noise, policy.router)
    return (weight[..., None] * contents).sum(-2), weight


def read_ages(ages: Tensor, slot: Tensor, weight: Tensor, fresh: Tensor, policy: Policy) -> Tensor:
    """Ages [B, J, 4] after the reads of a frame's fresh tokens [B, c]."""
    slots, heads = ages.shape[1], slot.shape[2]
    passed = fresh.sum(1, keepdim=True)
    ahead = (passed - fresh.cumsum(1)).to(ages.dtype)  # tokens that come after each
    rate = policy.decay**ahead * ((1 - policy.decay) * slots / heads) * fresh
    share = torch.zeros_like(ages[..., 0]).scatter_add_(1, slot.flatten(1), (weight * rate[..., None, None]).flatten(1))
    seen = torch.where((weight > 0) & fresh[..., None, None], ahead[..., None, None], torch.inf)
    since = torch.full_like(share, torch.inf).scatter_reduce_(1, slot.flatten(1), seen.flatten(1), "amin")
    since_read, since_write, read_use, write_use = ages.unbind(-1)
    fade = policy.decay ** passed.to(ages.dtype)
    columns = (
        torch.minimum(since, since_read + passed),
        since_write + passed,
        fade * read_use + share,
        fade * write_use,
    )
    return torch.stack(columns, -1)


class Judged(NamedTuple):
    """Each token's best affinity to a slot, that slot, and its best to an earlier token of its frame (-2 = none)."""

    affinity: Tensor
    slot: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, keys: Tensor, frame: Tensor, phase: Tensor, slots: Tensor) -> Judged:
        """keys [B, c, H, K] at places `phase` of a frame's keys [B, C, H, K], against those of slots [B, J, H, K]."""
        heads = keys.shape[2]
        to_slots = keys[:, :, 0] @ slots[:, :, 0].mT
        for head in range(1, heads):
            to_slots.baddbmm_(keys[:, :, head], slots[:, :, head].mT)
        affinity, slot = to_slots.max(-1)
        among = keys.flatten(2) @ frame.flatten(2).mT / heads
        places = torch.arange(frame.shape[1], device=keys.device)
        nearest = among.masked_fill_(places >= phase[..., None], -2).amax(-1)
        return cls(affinity / heads, slot, nearest)

    @property
    def novelty(self) -> Tensor:
        return 1 - torch.maximum(self.affinity, self.nearest)


class Write(NamedTuple):
    """A tick's decisions for the C tokens of a frame. target int64 [B, C]: the slot whose new record stands at the
    token's place, J for none; of several tokens that refine a slot, the last has it. refines: the slot that the token
    refines, -1 for none. overwrites: whether it takes its target for itself."""

    target: Tensor
    refines: Tensor
    overwrites: Tensor

    @classmethod
    def decided(
        cls, judged: Judged, due: Tensor, strength: Tensor, ages: Tensor, policy: Policy
    ) -> tuple[Write, Tensor]:
        """What a tick writes in the rows that are `due` [B, 1], and the ages after it."""
        slots = ages.shape[1]
        refine = due & (judged.affinity >= policy.match)
        novel = due & ~refine & (judged.nearest < policy.match)
        refines = torch.where(refine, judged.slot, -1)
        order = judged.novelty.masked_fill(~novel, -torch.inf).sort(descending=True, stable=True).indices
        order = order[:, : policy.writes]
        refined = torch.zeros_like(ages[..., 0]).scatter_add_(1, judged.slot, refine.to(ages.dtype)) > 0
        worth, least = usefulness(ages, policy).masked_fill(refined, torch.inf).sort(stable=True)
        may = novel.gather(1, order) & worth[:, : policy.writes].isfinite()
        taken = torch.where(may, least[:, : policy.writes], slots)

        last = refine & ~same_slot(refines).triu(1).any(-1)
        target = torch.where(last, refines, torch.full_like(refines, slots).scatter_(1, order, taken))
        overwrites = torch.zeros_like(novel).scatter_(1, order, may)

        where = torch.where(refine, refines, target)
        amount = strength * (refine | overwrites)
        mass = ages.new_zeros(ages.shape[0], slots + 1).scatter_add_(1, where, amount)[:, :slots]
        fresh = refined.new_zeros(ages.shape[0], slots + 1).scatter_(1, taken, True)[:, :slots]
        since_read, since_write, read_use, write_use = ages.unbind(-1)
        columns = {
            SINCE_READ: since_read.masked_fill(fresh, 0),
            SINCE_WRITE: since_write.masked_fill(fresh | refined, 0),
            READ_USE: read_use.masked_fill(fresh, 1),
            WRITE_USE: write_use + (1 - policy.decay) * slots * mass,
        }
        return cls(target, refines, overwrites), torch.stack([columns[i] for i in range(4)], -1)


def same_slot(refines: Tensor) -> Tensor:
    """bool [B, C, C]: both tokens refine the same slot."""
    return (refines[:, :, None] == refines[:, None]) & (refines >= 0)[..., None]


def written(before: Tensor, record: Tensor, strength: Tensor, write: Write, size: int) -> Tensor:
    """The new records [B, C, H, K + V] of the targets, whose old ones are `before`.

    Refined by the tokens t1 < t2 < ... in turn, a record ends as Π(1 - s) of itself and of token t its share
    s_t Π_{later u} (1 - s_u).
    """
    same = same_slot(write.refines).to(strength.dtype)
    log_keep = same * torch.log1p(-strength)[:, None]
    later = log_keep @ torch.ones_like(same[0]).tril(-1)
    share = same * later.exp() * strength[:, None]
    keep = log_keep.sum(-1).exp()[..., None, None]
    refined = keep * before + (share @ record.flatten(2)).view_as(before)
    key, value = record.split((size, record.shape[-1] - size), -1)
    over = torch.cat([key, strength[..., None, None] * value], -1)
    return torch.where(write.overwrites[..., None, None], over, refined)

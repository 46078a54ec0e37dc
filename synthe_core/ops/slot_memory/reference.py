"""The definition of `slot_memory`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.ops.dispatch import op, require_float
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


class Recalled(NamedTuple):
    """What each token read, and the memory after the last.

    read [B, T, H, V]; weights [B, T, H, N] of the slots int64 [B, T, H, N]; affinity and novelty [B, T], without
    gradient; bank [B, J, H, K + V], ages [B, J, 4], pending [B, C, H, K + V] and pending_strength [B, C] are where to
    go on from. What stands at padding means nothing.
    """

    read: Tensor
    weights: Tensor
    slots: Tensor
    affinity: Tensor
    novelty: Tensor
    bank: Tensor
    ages: Tensor
    pending: Tensor
    pending_strength: Tensor


@op
def slot_memory(
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
    """A bank of J slots: every token reads a few of them; every C tokens the bank takes in what those tokens brought.

    query, key       [B, T, H, K]; keys of length at most 1
    value            [B, T, H, V]
    strength         [B, T] in [0, 1): s, how much a token writes
    bank             [B, J, H, K + V]: of each slot its key (k_j) and its content (v_j), per head
    ages             [B, J, 4]: tokens since the slot was last read and last written, and running averages of its share
                     of the reads and of the writes, in fair shares (1 = an even share of the reads)
    pending          [B, C, H, K + V], pending_strength [B, C]: the tokens since the last tick, at position mod C; what
                     stands behind them is not looked at
    start            int64 [B]: position of the first token. lengths: int64 [B] or None; tokens after it are padding.
    seed             Gumbel noise of this seed is added to the logits of reads; None = none

    Read: per head the N = reads slots with the largest q_t·k_j, weighed by softmax or sparsemax; r_t = Σ_j w_tj v_j.

    Tick, after the token at the last of C positions (position mod C = C - 1). All C tokens are judged by the bank as it
    has been since the last tick: a_t = max_j of the mean over heads of k_t·k_j, and b_t is that slot.
      1. refine    a_t >= match: slot b_t moves by s_t towards the token, (k, v) += s_t ((k_t, v_t) - (k, v)), one
                   token after the other.
      2. novel     are the others, unless the key of an earlier token of the C is as near as `match` (that one stands
                   for both). The `writes` most novel ones overwrite the least useful slots that were not refined, the
                   most novel one the least useful: k = k_t, v = s_t v_t. A slot overwritten counts as just read, with
                   a fair share of the reads, so that it is not the next to go. What remains is not written.
    Novelty is 1 - the largest affinity to a slot or to an earlier token of the C. Ties go to the lower index.

    Which slots are read and written is decided without gradient; it flows through weights, contents and strengths. As
    a bank holds still between ticks, C tokens cost matrix products; the smaller C, the sooner it knows. float32 or
    float64. Raises InputError for other types and for more reads or writes than there are slots or tokens in a tick.
    Sources: THL (Transformer Hierarchical Layers, EGen 2026), whose bank is written at every token; Shazeer et al. 2017
    (top-k); Jang et al. 2017 (Gumbel).
    """
    check(query, bank, pending, policy)
    size, chunk = query.shape[-1], pending.shape[1]
    record = torch.cat([key, value], -1)
    place = torch.arange(chunk, device=query.device)
    waiting = place < (start % chunk)[:, None]
    pending, pending_strength = pending * waiting[..., None, None], pending_strength * waiting
    told: list[tuple[Tensor, ...]] = []
    for t in range(query.shape[1]):
        phase = ((start + t) % chunk)[:, None]
        real = torch.ones_like(phase, dtype=torch.bool) if lengths is None else (t < lengths)[:, None]
        logits = torch.einsum("bhk,bjhk->bhj", query[:, t], bank[..., :size])
        if seed is not None:
            choice = torch.arange(logits[0].numel(), device=logits.device).view_as(logits[0]).expand_as(logits)
            logits = logits + gumbel(seed, (start + t)[:, None], choice[:, None], logits.dtype)[:, 0]
        highest, slot = logits.topk(policy.reads)
        weight = route(highest, policy.router)
        contents = bank[..., size:].transpose(1, 2)
        read = torch.einsum("bhn,bhnv->bhv", weight, contents.gather(2, _as_wide(slot, contents)))
        ages = torch.where(real[..., None], older(ages, slot, weight.detach(), policy), ages)

        affinity = affinities(key[:, t : t + 1], bank[..., :size])[:, 0].amax(-1)
        among = affinities(key[:, t : t + 1], pending[..., :size])[:, 0]
        novelty = 1 - torch.maximum(affinity, among.masked_fill(place >= phase, -2).amax(-1))
        told.append((read, weight, slot, affinity, novelty))

        here = real & (place == phase)
        pending = torch.where(here[..., None, None], record[:, t, None], pending)
        pending_strength = torch.where(here, strength[:, t, None], pending_strength)
        due = (real & (phase == chunk - 1))[..., None]
        if due.any():
            taken, aged = tick(bank, ages, pending, pending_strength, size, policy)
            bank, ages = torch.where(due[..., None], taken, bank), torch.where(due, aged, ages)
            pending = torch.where(due[..., None], torch.zeros_like(pending), pending)
            pending_strength = torch.where(due[..., 0], torch.zeros_like(pending_strength), pending_strength)
    read, weights, slots, affinity, novelty = (torch.stack(each, 1) for each in zip(*told, strict=True))
    return Recalled(read, weights, slots, affinity, novelty, bank, ages, pending, pending_strength)


def check(query: Tensor, bank: Tensor, pending: Tensor, policy: Policy) -> None:
    """InputError unless the type is wide enough and there are as many slots and tokens as the policy asks for."""
    require_float("query", query)
    slots, chunk = bank.shape[1], pending.shape[1]
    if policy.reads > slots:
        raise InputError(f"slot_memory: {policy.reads} reads of {slots} slots", f"at most {slots}")
    if policy.writes > min(slots, chunk):
        raise InputError(
            f"slot_memory: {policy.writes} writes a tick of {chunk} tokens to {slots} slots",
            f"at most {min(slots, chunk)}",
        )


def _as_wide(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(*index.shape, like.shape[-1])


@torch.no_grad()
def affinities(keys: Tensor, others: Tensor) -> Tensor:
    """Mean over heads of k·k' [B, T, J] for keys [B, T, H, K] and others [B, J, H, K]."""
    return torch.einsum("bthk,bjhk->btj", keys, others) / keys.shape[2]


def older(ages: Tensor, slot: Tensor, weight: Tensor, policy: Policy) -> Tensor:
    """Ages after one more token, whose heads read `slot` with `weight` [B, H, N]."""
    slots = ages.shape[1]
    share = ages.new_zeros(*slot.shape[:2], slots).scatter(2, slot, weight).mean(1)
    since_read, since_write, read_use, write_use = ages.unbind(-1)
    columns = (
        torch.where(share > 0, 0.0, since_read + 1),
        since_write + 1,
        policy.decay * read_use + (1 - policy.decay) * slots * share,
        policy.decay * write_use,
    )
    return torch.stack(columns, -1)


def tick(
    bank: Tensor, ages: Tensor, pending: Tensor, strength: Tensor, size: int, policy: Policy
) -> tuple[Tensor, Tensor]:
    """The bank and its ages after taking in a full buffer of pending tokens."""
    slots, chunk = bank.shape[1], pending.shape[1]
    best, slot = affinities(pending[..., :size], bank[..., :size]).max(-1)
    among = affinities(pending[..., :size], pending[..., :size])
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=bank.device).triu()
    nearest = among.masked_fill(later, -2).amax(-1)
    refines = best >= policy.match
    novel = ~refines & (nearest < policy.match)

    written = torch.zeros_like(ages[..., 0])
    touched = torch.zeros_like(written, dtype=torch.bool)
    for t in range(chunk):
        hit = (F.one_hot(slot[:, t], slots) > 0) & refines[:, t, None]
        s = strength[:, t, None]
        bank = torch.where(hit[..., None, None], bank + s[..., None, None] * (pending[:, t, None] - bank), bank)
        written = written + hit * s.detach()
        touched = touched | hit

    novelty = (1 - torch.maximum(best, nearest)).masked_fill(~novel, -torch.inf)
    most_novel = novelty.sort(descending=True, stable=True).indices
    worth, least = usefulness(ages, policy).masked_fill(touched, torch.inf).sort(stable=True)
    rows = torch.arange(bank.shape[0], device=bank.device)
    overwritten = torch.zeros_like(touched)
    for i in range(policy.writes):
        token = most_novel[:, i]
        may = novel[rows, token] & worth[:, i].isfinite()
        hit = (F.one_hot(least[:, i], slots) > 0) & may[:, None]
        s = strength[rows, token]
        key, value = pending[rows, token].split((size, pending.shape[-1] - size), -1)
        new = torch.cat([key, s[:, None, None] * value], -1)
        bank = torch.where(hit[..., None, None], new[:, None], bank)
        written = written + hit * s[:, None].detach()
        overwritten = overwritten | hit

    aged = ages.clone()
    aged[..., SINCE_WRITE] = ages[..., SINCE_WRITE].masked_fill(touched | overwritten, 0)
    aged[..., WRITE_USE] = ages[..., WRITE_USE] + (1 - policy.decay) * slots * written
    aged[..., SINCE_READ] = ages[..., SINCE_READ].masked_fill(overwritten, 0)
    aged[..., READ_USE] = ages[..., READ_USE].masked_fill(overwritten, 1)
    return bank, aged

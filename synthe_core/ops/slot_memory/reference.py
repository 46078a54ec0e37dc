"""The definition of `slot_memory`, a bank of J slots that tokens read sparsely and write by novelty.

strength         s [B, T] in [0, 1): how much a token writes
bank             [B, J, H, K + V]: of each slot its key (k_j) and its content (v_j), per head
ages             [B, J, 4]: tokens since the slot was last read and last written, and running averages of its share of
                 the reads and of the writes, in fair shares (1 = an even share of the reads) pending          [B, C, H,
                 K + V], pending_strength [B, C]: the tokens since the last tick, at position mod C; entries behind them
                 are ignored

Read: per head the N = reads slots with the largest q_t·k_j, weighted by softmax or sparsemax; r_t = Σ_j w_tj v_j.

Tick, after the token at the last of C positions (position mod C = C - 1). All C tokens are compared with the bank as it
has been since the last tick: a_t = max_j of the mean over heads of k_t·k_j, and b_t is that slot.
  1. refine    a_t >= match: slot b_t moves by s_t towards the token, (k, v) += s_t ((k_t, v_t) - (k, v)), one token
               after the other.
  2. novel     are the others, unless the key of an earlier token of the C is as near as `match` (that one stands for
               both). The `writes` most novel ones overwrite the least useful slots that were not refined, the most
               novel one the least useful: k = k_t, v = s_t v_t. A slot overwritten counts as just read, with a fair
               share of the reads, so that it is not the next to be overwritten. The remaining tokens are not written.
Novelty is 1 - the largest affinity to a slot or to an earlier token of the C. Ties go to the lower index.

Which slots are read and written is decided without gradient; it flows through weights, contents and strengths. As the
bank changes at ticks only, C tokens cost matrix products; the smaller C, the sooner a token is in the bank.
Sources: THL (Transformer Hierarchical Layers, EGen 2026), whose bank is written at every token; Shazeer et al. 2017
(top-k); Jang et al. 2017 (Gumbel).
"""

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


class SlotOutput(NamedTuple):
    """What each token read, and the memory after the last.

    read [B, T, H, V]; weights [B, T, H, N] of the slots int64 [B, T, H, N]; affinity and novelty [B, T], without
    gradient; bank [B, J, H, K + V], ages [B, J, 4], pending [B, C, H, K + V] and pending_strength [B, C] are the state.
    Values at padding are undefined.
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


@op(batch_invariant=("cpu",))
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
) -> SlotOutput:
    """A bank of J slots: every token reads a few of them; every C tokens the bank takes in what those tokens brought.

    query, key [B, T, H, K], keys of length at most 1; value [B, T, H, V]; strength [B, T]; bank [B, J, H, K + V]; ages
    [B, J, 4]; pending [B, C, H, K + V], pending_strength [B, C]; start int64 [B], the position of the first token;
    lengths int64 [B] or None, tokens after it are padding; seed, of Gumbel noise on the logits of reads, None = none.

    The module's docstring defines reads and ticks. float32 or float64. Raises InputError for other types and for more
    reads or writes than there are slots or tokens in a tick.
    """
    check(query, bank, pending, policy)
    size, chunk = query.shape[-1], pending.shape[1]
    record = torch.cat([key, value], -1)
    place = torch.arange(chunk, device=query.device)
    is_pending = place < (start % chunk)[:, None]
    pending, pending_strength = pending * is_pending[..., None, None], pending_strength * is_pending
    outputs: list[tuple[Tensor, ...]] = []
    for t in range(query.shape[1]):
        phase = ((start + t) % chunk)[:, None]
        real = torch.ones_like(phase, dtype=torch.bool) if lengths is None else (t < lengths)[:, None]
        read, weight, slot = read_token(query[:, t], bank, start + t, policy, seed)
        ages = torch.where(real[..., None], older(ages, slot, weight.detach(), policy), ages)
        earlier = (pending[..., :size], place < phase)
        outputs.append((read, weight, slot, *novelty_of(key[:, t : t + 1], bank[..., :size], *earlier)))

        here = real & (place == phase)
        pending = torch.where(here[..., None, None], record[:, t, None], pending)
        pending_strength = torch.where(here, strength[:, t, None], pending_strength)
        due = (real & (phase == chunk - 1))[..., None]
        if due.any():
            written, aged = tick(bank, ages, pending, pending_strength, size, policy)
            bank, ages = torch.where(due[..., None], written, bank), torch.where(due, aged, ages)
            pending = torch.where(due[..., None], torch.zeros_like(pending), pending)
            pending_strength = torch.where(due[..., 0], torch.zeros_like(pending_strength), pending_strength)
    read, weights, slots, affinity, novelty = (torch.stack(each, 1) for each in zip(*outputs, strict=True))
    return SlotOutput(read, weights, slots, affinity, novelty, bank, ages, pending, pending_strength)


def read_token(
    query: Tensor, bank: Tensor, position: Tensor, policy: Policy, seed: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a token with queries [B, H, K] at position [B] reads [B, H, V], with which weights and slots [B, H, N]."""
    size = query.shape[-1]
    logits = torch.einsum("bhk,bjhk->bhj", query, bank[..., :size])
    if seed is not None:
        choice = torch.arange(logits[0].numel(), device=logits.device).view_as(logits[0]).expand_as(logits)
        logits = logits + gumbel(seed, position[:, None], choice[:, None], logits.dtype)[:, 0]
    highest, slot = logits.topk(policy.reads)
    weight = route(highest, policy.router)
    contents = bank[..., size:].transpose(1, 2)
    index = slot[..., None].expand(*slot.shape, contents.shape[-1])
    return torch.einsum("bhn,bhnv->bhv", weight, contents.gather(2, index)), weight, slot


def novelty_of(key: Tensor, slots: Tensor, pending: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor]:
    """A token's largest affinity to a slot, and its novelty, both [B].

    key [B, 1, H, K], slots [B, J, H, K], pending [B, C, H, K], of which `earlier`, bool [B, C], precede the token.
    """
    affinity = affinities(key, slots)[:, 0].amax(-1)
    to_pending = affinities(key, pending)[:, 0]
    return affinity, 1 - torch.maximum(affinity, to_pending.masked_fill(~earlier, -2).amax(-1))


def check(query: Tensor, bank: Tensor, pending: Tensor, policy: Policy) -> None:
    """InputError unless the type is wide enough and there are at least as many slots and tokens as the policy needs."""
    require_float("query", query)
    slots, chunk = bank.shape[1], pending.shape[1]
    if policy.reads > slots:
        raise InputError(f"slot_memory: {policy.reads} reads of {slots} slots", f"at most {slots}")
    if policy.writes > min(slots, chunk):
        raise InputError(
            f"slot_memory: {policy.writes} writes a tick of {chunk} tokens to {slots} slots",
            f"at most {min(slots, chunk)}",
        )


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
    affinity, slot = affinities(pending[..., :size], bank[..., :size]).max(-1)
    to_pending = affinities(pending[..., :size], pending[..., :size])
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=bank.device).triu()
    nearest = to_pending.masked_fill(later, -2).amax(-1)
    refines = affinity >= policy.match
    novel = ~refines & (nearest < policy.match)

    written = torch.zeros_like(ages[..., 0])
    refined = torch.zeros_like(written, dtype=torch.bool)
    for t in range(chunk):
        hit = (F.one_hot(slot[:, t], slots) > 0) & refines[:, t, None]
        s = strength[:, t, None]
        bank = torch.where(hit[..., None, None], bank + s[..., None, None] * (pending[:, t, None] - bank), bank)
        written = written + hit * s.detach()
        refined = refined | hit

    novelty = (1 - torch.maximum(affinity, nearest)).masked_fill(~novel, -torch.inf)
    most_novel = novelty.sort(descending=True, stable=True).indices
    worth, least_useful = usefulness(ages, policy).masked_fill(refined, torch.inf).sort(stable=True)
    rows = torch.arange(bank.shape[0], device=bank.device)
    overwritten = torch.zeros_like(refined)
    for i in range(policy.writes):
        token = most_novel[:, i]
        allowed = novel[rows, token] & worth[:, i].isfinite()
        hit = (F.one_hot(least_useful[:, i], slots) > 0) & allowed[:, None]
        s = strength[rows, token]
        key, value = pending[rows, token].split((size, pending.shape[-1] - size), -1)
        new = torch.cat([key, s[:, None, None] * value], -1)
        bank = torch.where(hit[..., None, None], new[:, None], bank)
        written = written + hit * s[:, None].detach()
        overwritten = overwritten | hit

    aged = ages.clone()
    aged[..., SINCE_WRITE] = ages[..., SINCE_WRITE].masked_fill(refined | overwritten, 0)
    aged[..., WRITE_USE] = ages[..., WRITE_USE] + (1 - policy.decay) * slots * written
    aged[..., SINCE_READ] = ages[..., SINCE_READ].masked_fill(overwritten, 0)
    aged[..., READ_USE] = ages[..., READ_USE].masked_fill(overwritten, 1)
    return bank, aged

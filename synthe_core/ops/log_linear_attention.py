"""Log-linear attention: a linear memory in a hierarchy of states, each of the writes of a longer and older span.

Source: Guo et al. 2025, "Log-linear attention".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.ops.delta_rule.chunked import chunk_decays, solver
from synthe_core.ops.delta_rule.reference import per_value_head
from synthe_core.ops.dispatch import op, require_float
from synthe_core.ops.frames import join_chunks, may_read_sizes, split_chunks

CHUNK = 64


def level_of(token: Tensor, source: Tensor, levels: int) -> Tensor:
    """The level at which the token at position `token` reads a write at `source`, at most `levels` - 1: how many binary
    digits the two have up to the highest in which they differ. Position -1 precedes all, and is of the last level."""
    apart = token ^ source
    digits = torch.frexp(apart.double()).exponent.long()
    return torch.where(apart < 0, levels - 1, digits.clamp_max(levels - 1))


@op(batch_invariant=("cpu",))
def log_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    weights: Tensor,
    positions: Tensor,
    state: Tensor,
    overwrite: bool,
) -> tuple[Tensor, Tensor]:
    """o_t = Σ_l λ_tl S_tlᵀ q_t over L levels: S_0 holds the present write, and S_l, of a Fenwick tree over positions,
    those of a block of 2^(l-1) tokens that ends where those of the levels below begin.

    Token t first merges: with h the level of t - 1 seen from t, S_h takes in all S_l, l < h, which become empty. Then
    every S_l decays by α_t and, to `overwrite`, passes the delta rule's I - β_t k_t k_tᵀ; S_0 becomes β_t k_t v_tᵀ.
    With all λ = 1 it is `delta_rule`, or `linear_attention` without `overwrite`. The last level merges with itself: it
    holds whatever is older than 2^(L-2) to 2^(L-1) tokens.

    q, k, v, beta, log_decay as in `delta_rule`.
    weights    [B, T, H, L]: λ.
    positions  int64 [B, 1 + T]: of the token before the first (-1 for none), and of each; in padding, that of the last
               token, so that nothing merges.
    state      [B, H, L, K, V], as the token before the first left it; levels whose block is empty there are not read.

    Returns o [B, T, H, V] and the state. float32 or float64, one dtype for all but the positions.
    """
    require_float("q", q)
    q, k = per_value_head(q, v), per_value_head(k, v)
    state, levels, outputs = _filled(state, positions[:, 0]), torch.arange(state.shape[2], device=q.device), []
    for t in range(q.shape[1]):
        merged = level_of(positions[:, t + 1], positions[:, t], len(levels))[:, None]
        below, into = (part[:, None, :, None, None] for part in (levels < merged, levels == merged))
        gathered = state.masked_fill(~below, 0).sum(2, keepdim=True)
        state = torch.where(into, state + gathered, state.masked_fill(below, 0))
        if log_decay is not None:
            state = state * log_decay[:, t, :, None, None, None].exp()
        written = beta[:, t, :, None] * k[:, t]
        if overwrite:
            recalled = torch.einsum("bhk,bhlkv->bhlv", k[:, t], state)
            key = written[:, :, None, :, None].expand(-1, -1, len(levels), -1, -1)
            flat = (part.flatten(0, 2) for part in (state, key, recalled[:, :, :, None]))
            state = torch.baddbmm(*flat, alpha=-1).view_as(state)
        now = state[:, :, :1] + (written[..., None] * v[:, t, :, None])[:, :, None]
        state = torch.cat([now, state[:, :, 1:]], 2)
        read = torch.einsum("bhk,bhlkv->bhlv", q[:, t], state)
        outputs.append((weights[:, t, :, :, None] * read).sum(2))
    return torch.stack(outputs, 1), state


def _filled(state: Tensor, position: Tensor) -> Tensor:
    """The state with zeros in the levels that are empty after the token at `position` [B]."""
    level = torch.arange(state.shape[2], device=state.device)
    block = position[:, None] >> (level - 1).clamp_min(0)
    filled = torch.where(level < state.shape[2] - 1, block % 2 == 1, block > 0) | (level == 0)
    return state.masked_fill(~(filled & (position[:, None] >= 0))[:, None, :, None, None], 0)


class _Places(NamedTuple):
    """Levels by position, for chunks that begin at the tokens `first` [B, N].

    inside [B, N, C, C]: of token s from token t. since [B, N, C]: of a chunk's first token from each. to_next [B, N]:
    of it from the next chunk's first, and after the last chunk from the last token; own [B, N, C]: of each token from
    that. entry [B]: of the token before all from the first. present: the levels of what may be there at its start.
    """

    inside: Tensor
    since: Tensor
    to_next: Tensor
    own: Tensor
    entry: Tensor
    present: range

    @classmethod
    def of(cls, positions: Tensor, size: int, levels: int) -> _Places:
        before, tokens = positions[:, 0], positions[:, 1:]
        last = tokens[:, -1:]
        tokens = torch.cat([tokens, last.expand(-1, -tokens.shape[1] % size)], 1).unflatten(1, (-1, size))
        first = tokens[:, :, 0]
        following = torch.cat([first[:, 1:], last], 1)
        entry = level_of(first[:, 0], before, levels)
        low, high = 0, levels - 1
        if may_read_sizes(positions):
            begun = level_of(first[:, 1:], tokens[:, :-1, -1], levels)
            low = int(torch.cat([begun, entry[:, None]], 1).min())
            high = max(low, int(level_of(last, torch.zeros_like(last), levels).max()))
        return cls(
            level_of(tokens[..., None], tokens[:, :, None], levels),
            level_of(tokens, first[:, :, None], levels),
            level_of(following, first, levels),
            level_of(following[:, :, None], tokens, levels),
            entry,
            range(low, high + 1),
        )


class _Chunks(NamedTuple):
    """The rule of a chunk, over G = B H heads and N chunks: o = A v + Qᵀ S and S' = through (S - erase (recall S)) +
    Σ_s written_s v_sᵀ, for the whole memory as for each part of it.

    coefficients A [G, N, C, C]; queries Q, written and recall [G, N, C, K]; through [G, N, 1, 1].
    """

    coefficients: Tensor
    queries: Tensor
    written: Tensor
    recall: Tensor | None
    through: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, beta: Tensor, log_decay: Tensor, overwrite: bool) -> _Chunks:
        """Of chunked q, k [G, N, C, K], β and log α [G, N, C]."""
        decay, strength = chunk_decays(log_decay), beta[..., None]
        read = (q @ k.mT) * decay.between * strength.mT
        queries, ended = decay.from_start * q, decay.to_end * strength * k
        if not overwrite:
            return cls(read, queries, ended, None, decay.through)
        recall = decay.from_start * k
        inverse = solver(((k @ k.mT) * decay.between * strength.mT).tril(-1))
        read = read @ inverse
        return cls(read, queries - read @ recall, inverse.mT @ ended, recall, decay.through)

    def steps(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Of each chunk: what scales the memory [G, 1, 1], written [G, C, K], and what erases [G, K, K] or None."""
        erased = [None] * self.written.shape[1] if self.recall is None else (self.written.mT @ self.recall).unbind(1)
        return zip(self.through.unbind(1), self.written.unbind(1), erased, strict=True)


@log_linear_attention.kernel("chunked", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    weights: Tensor,
    positions: Tensor,
    state: Tensor,
    overwrite: bool,
) -> tuple[Tensor, Tensor]:
    """Torch: chunks of 64 tokens; before each, the levels that its tokens may read."""
    heads, levels, like = v.shape[2], state.shape[2], v
    size = min(CHUNK, v.shape[1])
    place = _Places.of(positions, size, levels)
    with torch.autocast(q.device.type, enabled=False):
        log_decay = torch.zeros_like(beta) if log_decay is None else log_decay
        q, k, v, beta, log_decay, weights = (
            split_chunks(part, size)
            for part in (per_value_head(q, v), per_value_head(k, v), v, beta, log_decay, weights)
        )
        rule = _Chunks.of(q, k, beta, log_decay, overwrite)
        inside, since = (part.repeat_interleave(heads, 0) for part in (place.inside, place.since))
        reading = weights.gather(-1, torch.maximum(since[..., None], _tensor(place.present, since)))  # [G, N, C, M]
        queries = (reading[..., None] * rule.queries[..., None, :]).flatten(-2)
        o = (rule.coefficients * weights.gather(-1, inside)) @ v
        every, befores = range(levels), []
        memory = _moved(_filled(state, positions[:, 0]), every, place.entry, place.present)
        for n, ((through, written, erased), values) in enumerate(zip(rule.steps(), v.unbind(1), strict=True)):
            targets = place.present if n + 1 < v.shape[1] else every
            befores.append(memory.flatten(1, 2))
            passed = through[:, None] * memory
            passed = passed if erased is None else passed - erased[:, None] @ memory
            passed = _moved(passed.unflatten(0, (-1, heads)), place.present, place.to_next[:, n], targets)
            selected = (place.own[:, n, :, None] == _tensor(targets, since)).repeat_interleave(heads, 0)  # [G, C, M]
            own = (selected[..., None] * written[:, :, None]).flatten(2).mT @ values
            memory = passed + own.unflatten(1, (len(targets), -1))
        o = o + queries @ torch.stack(befores, 1)
    return join_chunks(o, like), memory.unflatten(0, (-1, heads))


def _moved(states: Tensor, sources: range, at_least: Tensor, targets: range) -> Tensor:
    """States [B, H, M, K, V] of the levels `sources`, those below `at_least` [B] merged into that one, as those of the
    levels `targets`: [B H, M', K, V]."""
    level = torch.maximum(_tensor(sources, at_least), at_least[:, None]).clamp_max(targets[-1])
    goes = (level[:, None] == _tensor(targets, at_least)[:, None]).to(states.dtype)  # [B, M', M]
    return torch.einsum("bts,bhskv->bhtkv", goes, states).flatten(0, 1)


def _tensor(levels: range, like: Tensor) -> Tensor:
    return torch.arange(levels.start, levels.stop, device=like.device)

"""Spans: tokens at absolute positions jK ... jK + K - 1, and the passes of what learns once a span."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.layers.learner import Pass

WRAP = 2**23  # a position modulo this is exact in float32; no two tokens in a row are further apart


class Spans(NamedTuple):
    """The clock of spans of K tokens over a pass of T, each row by its own positions.

    A span is finished when a token of a later one comes, even where positions have gaps, and known from that token on.

    finished: bool [B, T], the spans before this token are finished as of it. passed: int64 [B, T], how many have been
    in this pass by each token. For the n-th of them, n < N: at, int64 [B, N], the token that found it finished; which,
    int64 [B, N], its j. lengths [B]: how many a row really has, and mask [B, N] of those, None where all rows have N.
    """

    finished: Tensor
    passed: Tensor
    at: Tensor
    which: Tensor
    lengths: Tensor
    mask: Tensor | None

    @classmethod
    def over(cls, every: int, ctx: Pass, seen: Tensor) -> Spans:
        """The clock of spans of `every` tokens over `ctx`; `seen` [B] as `last_seen` gives it of the pass before."""
        first = ctx.positions[:, :1]
        stored = seen.long()[:, None]
        previous = torch.where(stored < 0, first, first - (first - stored) % WRAP)
        before = torch.cat([previous, ctx.positions[:, :-1]], 1) // every
        finished = ctx.positions // every > before
        if ctx.mask is not None:
            finished = finished & ctx.mask
        count = finished.cumsum(1)
        lengths = count[:, -1]
        fewest, most = torch.stack(lengths.aminmax()).tolist()
        token = torch.arange(count.shape[1], device=count.device).expand_as(count)
        at = torch.zeros(len(count), most + 1, dtype=torch.int64, device=count.device)
        at = at.scatter_(1, torch.where(finished, count - 1, most), token)[:, :-1]
        mask = None if fewest == most else torch.arange(most, device=count.device) < lengths[:, None]
        return cls(finished, count, at, before.gather(1, at), lengths, mask)

    def within(self, ctx: Pass) -> Pass:
        """The pass of a learner with one token a span, whose position is the span's index."""
        lengths = None if self.mask is None else self.lengths
        tokens, path = ctx.among(self.at), f"{ctx.path}.rule"
        return replace(ctx, positions=self.which, lengths=lengths, mask=self.mask, signals={}, tokens=tokens, path=path)


def last_seen(ctx: Pass, seen: Tensor) -> Tensor:
    """The position of each row's last real token so far [B], modulo 2^23, in `seen`'s type; -1 before the first."""
    if ctx.lengths is None:
        return (ctx.positions[:, -1] % WRAP).to(seen)
    last = ctx.positions.gather(1, (ctx.lengths - 1).clamp_min(0)[:, None])[:, 0] % WRAP
    return torch.where(ctx.lengths > 0, last.to(seen), seen)


def entries(x: Tensor, index: Tensor) -> Tensor:
    """Entries `index` int64 [B, M] of each row of x [B, N, ...]: [B, M, ...]."""
    batch, count = x.shape[:2]
    rows = torch.arange(batch, device=x.device)[:, None] * count
    return x.flatten(0, 1).index_select(0, (rows + index).flatten()).unflatten(0, index.shape)

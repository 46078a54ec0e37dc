"""When a learner runs: at the tokens whose signal says so. The share of them is held by moving the threshold."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass, Spec

RANDOM = "random"
FOLLOW = 0.1  # share of the way that the threshold goes, each step, to where that step's tokens would have had it
SAMPLE = 1 << 18  # signals that a quantile is taken of, at most


class When(Spec):
    """Tokens ask by a signal that an earlier learner publishes: where it is below, or above, a threshold."""

    signal: str = Field(..., description="the name of the signal; `random` asks by position alone, for comparison")
    below: float | None = Field(None, description="ask where the signal is below this, which training may move")
    above: float | None = Field(None, description="or where it is above this")
    target: float | None = Field(
        0.25, gt=0, lt=1, description="share of the tokens that ask, held by moving the threshold; null = it stays"
    )
    explore: float = Field(
        0.1, ge=0, lt=1, description="in training, the share of the other tokens that try it nevertheless"
    )
    temperature: float = Field(
        0.1, gt=0, description="distance from the threshold, in the signal's units, over which it is taught"
    )

    @model_validator(mode="after")
    def _one_side(self) -> When:
        if (self.below is None) == (self.above is None):
            raise ValueError("give one of `below` and `above`")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """The signal, where another learner has to publish it."""
        return () if self.signal == RANDOM else (self.signal,)


class Fired(NamedTuple):
    """Which tokens ask, bool [B, T]; their places in the rows laid end to end, int64 [N]; and for each a factor [N]
    of its answer: 1, with the gradient of how willingly it asked."""

    where: Tensor
    at: Tensor
    gate: Tensor


class Firing(nn.Module):
    """Token t asks where m_t > 0, m_t = θ - s_t (`below`) or s_t - θ (`above`); s [B, T] is the signal.

    A decision depends on the token's own signal and on θ, which only moves between training steps: after each, it goes
    a tenth of the way to the quantile of that step's signals at which `target` of the real tokens would have asked. So
    it follows the signal, whatever its scale, and stays where training left it.

    Straight-through (Bengio et al. 2013): the answer y counts in full, and its gradient reaches the signal as if it had
    been multiplied by σ(m_t / temperature). A token that did not ask has no answer, and teaches nothing. So that those
    who would do well to ask can be found, a share `explore` of the others, chosen by position, runs in training too.

    `random` is for comparison: s_t is a hash of the token's position, uniform in [0, 1), so that as many ask as with a
    signal that knows something.
    """

    threshold: Tensor
    seed: Tensor

    def __init__(self, when: When) -> None:
        super().__init__()
        self.when = when
        start = when.below if when.below is not None else when.above
        self.register_buffer("threshold", torch.tensor(start))
        self.register_buffer("seed", torch.randint(1 << 40, ()))  # each learner has its own

    def forward(self, ctx: Pass, dtype: torch.dtype) -> Fired:
        """Who asks in this pass; decided in `dtype`."""
        signal = self._signal(ctx).to(dtype)
        margin = self.threshold.to(dtype) - signal
        margin = margin if self.when.above is None else -margin
        where = margin > 0 if ctx.mask is None else (margin > 0) & ctx.mask
        tokens = where.numel() if ctx.mask is None else ctx.mask.sum().clamp_min(1)
        ctx.measures.append(("firing_rate", where.sum() / tokens))  # of those that ask; explorers are not counted
        if self.training and self.when.explore:
            where = where | (uniform(ctx.positions, -self.seed) < self.when.explore)
            where = where if ctx.mask is None else where & ctx.mask
        ctx.emit("fired", where)
        if self.training and self.when.target is not None:
            share = self.when.target if self.when.above is None else 1 - self.when.target
            ctx.updates.append((self.threshold, followed(self.threshold, signal.detach(), ctx.mask, share, FOLLOW)))
        at = where.flatten().nonzero().squeeze(1)
        will = (margin.flatten().index_select(0, at) / self.when.temperature).sigmoid()
        return Fired(where, at, 1 + (will - will.detach()))

    def _signal(self, ctx: Pass) -> Tensor:
        if self.when.signal == RANDOM:
            return uniform(ctx.positions, self.seed)
        if self.when.signal not in ctx.signals:
            raise InputError(
                f"no learner before has published the signal '{self.when.signal}'",
                f"published: {', '.join(sorted(ctx.signals)) or 'none'}",
            )
        return ctx.signals[self.when.signal]


def followed(threshold: Tensor, signal: Tensor, mask: Tensor | None, share: float, rate: float) -> Tensor:
    """A threshold after a step of these signals: gone `rate` of the way to where `share` of the real tokens' would lie
    below it, and all of the way from infinity."""
    sample = signal if mask is None else signal.masked_fill(~mask, torch.nan)
    sample = sample.flatten()[:: -(-sample.numel() // SAMPLE)]
    wanted = sample.nanquantile(share).to(threshold.dtype)
    near = torch.where(threshold.isinf(), wanted, threshold.lerp(wanted, rate))
    return torch.where(wanted.isnan(), threshold, near)  # NaN: a step without a real token


def uniform(positions: Tensor, seed: Tensor | int) -> Tensor:
    """Numbers in [0, 1), float32, that look drawn: a hash of int64 positions (SplitMix, Steele et al. 2014)."""
    x = (positions + seed) * -0x61C8864680B583EB  # multiplication wraps around
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    x = x ^ (x >> 31 & (1 << 33) - 1)
    return (x >> 40 & (1 << 24) - 1).float() * 2.0**-24

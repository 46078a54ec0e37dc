"""Depth that each token decides for itself: easy ones leave out blocks, and the others run as a shorter sequence.

A router after the first `min` blocks scores every token; the token runs a later block where its score is above that
block's threshold. Thresholds are moved between training steps only, so a token's depth depends on nothing but its own
stream, and decoding one token at a time takes the same way as one long pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core import state as states
from synthe_core.layers.projection import project_in
from synthe_core.learner import Pass, Spec
from synthe_core.model.block import RMSNorm
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.trace import Emission, Trace, schema

FOLLOW = 0.3  # share of the way that a threshold goes, each step, to where this step's tokens would have had it
SLOW = 8.0  # the router's weights are kept this much larger than they act, so that a step of Adam turns them less
SAMPLE = 1 << 18  # scores that a quantile is taken of, at most


class DepthSpec(Spec):
    """How deep a token goes: every token runs `min` blocks, and on average `target` of the others."""

    min: int = Field(2, ge=1, description="blocks that every token runs; the router reads what comes out of them")
    target: float = Field(0.6, gt=0, lt=1, description="share of the other blocks that a token runs on average")
    mode: Literal["exit", "skip"] = Field(
        "exit",
        description="exit: one score, and a token leaves for good at its depth; skip: a score for each block",
    )
    hidden: int = Field(64, ge=1, description="units of the router's hidden layer")

    def rates(self, routed: int) -> list[float]:
        """The share of tokens to run each of `routed` blocks; their mean is `target`.

        skip: `target` everywhere. exit: falling evenly from block to block, as steeply as leaves all of them in (0, 1).
        """
        steep = 0.0 if self.mode == "skip" else min(self.target, 1 - self.target)
        return [self.target + steep * (1 - (2 * block + 1) / routed) for block in range(routed)]


class Choice(NamedTuple):
    """Which tokens run one block: `keep` bool [B, T], how many in each row, how willingly (None: no gradient)."""

    keep: Tensor
    counts: list[int]
    will: Tensor | None

    @classmethod
    def everyone(cls, ctx: Pass) -> Choice:
        """All tokens, for a pass without a router."""
        if ctx.mask is None:
            batch, time = ctx.positions.shape
            return cls(torch.ones_like(ctx.positions, dtype=torch.bool), [time] * batch, None)
        return cls(ctx.mask, ctx.mask.sum(1).tolist(), None)

    def run(self, block: Any, x: Tensor, remembered: Sequence[Any], ctx: Pass) -> tuple[Tensor, list[Any]]:
        """The block over the tokens that are kept, gathered to the front; the others pass by unchanged.

        x [B, T, D]; `remembered` is the block's state and, last, its clock: int64 [B], how many tokens it has seen.
        The block lives in its own time: positions count what it has seen, so windows and ticks are in tokens of its
        own. It publishes signals for its tokens; for the others the signal of the block before stays.
        """
        *before, clock = remembered
        batch, time = self.keep.shape
        live = [row for row, count in enumerate(self.counts) if count]
        if not live:
            return x, list(remembered)
        longest = max(self.counts)
        if min(self.counts) == time:
            steps = torch.arange(time, device=x.device)
            y, after = block(x, before, replace(ctx, positions=clock[:, None] + steps, lengths=None, mask=None))
            return (y if self.will is None else Gate.apply(x, y, self.will)), [*after, clock + time]
        rows = None if len(live) == batch else torch.tensor(live, device=x.device)
        places = Places.of(self.keep, rows, longest)
        ragged = any(self.counts[row] != longest for row in live)
        inner = replace(
            ctx,
            positions=_rows(clock, rows)[:, None] + torch.arange(longest, device=x.device),
            lengths=places.real.sum(1) if ragged else None,
            mask=places.real if ragged else None,
            tokens=ctx.among(places.index % time),
            signals={name: places.gather(value) for name, value in ctx.signals.items()},
        )
        given = dict(inner.signals)
        short = places.gather(x)
        y, after = block(short, before if rows is None else states.take(before, rows), inner)
        if self.will is not None:
            y = Gate.apply(short, y, places.gather(self.will))
        for name, value in inner.signals.items():
            if value is not given.get(name):  # the blocks that every token runs have published the same names before
                ctx.signals[name] = places.scatter(value, ctx.signals[name])
        if rows is not None:
            after = states.put(before, rows, after)
        return places.scatter(y, x), [*after, clock + self.keep.sum(1)]


@dataclass(frozen=True)
class Places:
    """Where the kept tokens of a pass [B, T, ...] go in a shorter one [b, M, ...], and which of its places are real.

    index: int64 [b, M] into the pass with its rows laid end to end; a place that is not real repeats a token.
    """

    index: Tensor
    real: Tensor

    @classmethod
    def of(cls, keep: Tensor, rows: Tensor | None, longest: int) -> Places:
        """Of the tokens `keep` bool [B, T] of some rows, at most `longest` in each."""
        time = keep.shape[1]
        base = torch.arange(keep.shape[0], device=keep.device) * time
        keep, base = _rows(keep, rows), _rows(base, rows)
        rank = keep.cumsum(1)
        to = torch.where(keep, rank - 1, longest)  # one place too many, for all that are not kept
        steps = torch.arange(time, device=keep.device).expand_as(to)
        index = steps.new_zeros(keep.shape[0], longest + 1).scatter(1, to, steps)[:, :longest]
        return cls(base[:, None] + index, torch.arange(longest, device=keep.device) < rank[:, -1:])

    def gather(self, x: Tensor) -> Tensor:
        """The kept tokens of x [B, T, ...] as [b, M, ...]."""
        return x.flatten(0, 1).index_select(0, self.index.flatten()).unflatten(0, self.index.shape)

    def scatter(self, y: Tensor, x: Tensor) -> Tensor:
        """x [B, T, ...] with the kept tokens replaced by those of y [b, M, ...]."""
        flat = x.flatten(0, 1)
        to = self.index.masked_fill(~self.real, flat.shape[0])  # places that are not real go to a row too many
        out = torch.cat([flat, flat[:1]]).index_copy_(0, to.flatten(), y.flatten(0, 1).to(x.dtype))
        return out[:-1].view_as(x)


class Gate(torch.autograd.Function):
    """x + g (y - x) with g = 1 in value and the gradient of `will`: what a block adds says how much it was worth.

    Straight-through (Bengio et al. 2013): the values are those of y, whatever the router thinks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, will: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.dtype = will.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return None, grad, (grad * (y - x)).sum(-1).to(ctx.dtype)


class Will(torch.autograd.Function):
    """sigmoid of the margins [blocks, B, T], whose gradient is taken against the mean of the tokens that were kept.

    The thresholds follow the scores, so a push that is common to all tokens would change no decision: it would only
    make the scores run away from them. What is left says which tokens gained more from a block than the others.
    """

    @staticmethod
    def forward(ctx: Any, margins: Tensor, keep: Tensor) -> Tensor:
        will = margins.sigmoid()
        ctx.save_for_backward(will, keep)
        return will

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        will, keep = ctx.saved_tensors
        grad = grad * will * (1 - will)  # nothing comes back from tokens that were not kept
        mean = grad.sum((1, 2), keepdim=True) / keep.sum((1, 2), keepdim=True).clamp_min(1)
        return (grad - mean) * keep, None


class Router(nn.Module):
    """s = w · norm(silu((W norm(x) + b) / 8)), |w| = 1: how much thought a token needs. It runs block j if s_j > t_j.

    x [B, T, D]. The last norm and |w| = 1 keep the scores at a scale of one, wherever training takes them. The
    thresholds t hold the budget: after each training step they go a part of the way to where this step's tokens would
    have met the wanted rates. They begin at minus infinity: at first every token runs every block. Decisions that
    change slowly cost less quality, as the later blocks must live with them.
    """

    thresholds: Tensor

    emits = schema(
        {
            "depth": Emission("B T", "depth", "blocks that the token runs"),
            "keep": Emission("N B T", "depth", "which of the later blocks the token runs"),
        }
    )

    def __init__(self, spec: DepthSpec, width: int, blocks: int, eps: float) -> None:
        super().__init__()
        self.spec = spec
        self.routed = blocks - spec.min
        self.norm = RMSNorm(width, eps)
        self.inner = project_in(width, spec.hidden, bias=True)
        self.outer = project_in(spec.hidden, 1 if spec.mode == "exit" else self.routed)
        with torch.no_grad():
            self.inner.weight.mul_(SLOW)
            self.outer.weight.mul_(SLOW)
        self.register_buffer("thresholds", torch.full((self.routed,), -torch.inf))

    def scores(self, x: Tensor) -> Tensor:
        """[B, T, 1] or [B, T, blocks], in float32 or float64 whatever the rest of the model is run in.

        The router reads the stream and does not shape it: its gradient, which compares tokens with each other, stays
        in its own weights.
        """
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            x = rms_norm(x.detach().to(wide), self.norm.weight.to(wide), self.norm.eps, wide)
            x = F.silu(F.linear(x, self.inner.weight.to(wide), self.inner.bias.to(wide)) / SLOW)
            x = F.rms_norm(x, (x.shape[-1],), eps=self.norm.eps)
            return F.linear(x, F.normalize(self.outer.weight.to(wide), dim=-1))

    def forward(self, x: Tensor, ctx: Pass, cost: Callable[[int], float]) -> list[Choice]:
        """What each of the later blocks runs of x; `cost` is a block's FLOPs per token of a pass of that length."""
        if "router" in ctx.without:
            ctx.spare(self.flops())
            return [Choice.everyone(ctx)] * self.routed
        scores = self.scores(x)
        margins = (scores - self.thresholds).movedim(-1, 0)  # [blocks, B, T]
        keep = margins.detach() > 0
        if ctx.mask is not None:
            keep = keep & ctx.mask
        counts = keep.sum(-1).tolist()  # the one wait for the device: lengths decide shapes
        wills = Will.apply(margins, keep).unbind() if margins.requires_grad else [None] * self.routed
        self._tell(keep, counts, ctx, cost)
        if self.training:
            ctx.updates.append((self.thresholds, self._followed(scores.detach(), ctx.mask)))
        return [Choice(*each) for each in zip(keep.unbind(), counts, wills, strict=True)]

    def _followed(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """The thresholds after a step of these scores."""
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], torch.nan)
        sample = scores.flatten(0, 1)
        sample = sample[:: -(-sample.shape[0] // SAMPLE)].expand(-1, self.routed)
        shares = 1 - sample.new_tensor(self.spec.rates(self.routed))
        wanted = torch.stack(
            [column.nanquantile(share) for column, share in zip(sample.unbind(1), shares, strict=True)]
        )
        now = self.thresholds.to(wanted.dtype)
        wanted = torch.where(wanted.isnan(), now, wanted)  # a step without a real token
        return torch.where(now.isinf(), wanted, now.lerp(wanted, FOLLOW))

    def _tell(self, keep: Tensor, counts: list[list[int]], ctx: Pass, cost: Callable[[int], float]) -> None:
        """Depth for the log and for a trace, and what the blocks were spared: padding of the short passes is not."""
        runs = keep.sum(0)
        tokens = runs.numel() if ctx.mask is None else ctx.mask.sum().clamp_min(1)
        ctx.measures.append(("depth", runs.sum() / (tokens * self.routed)))
        path, ctx.path = ctx.path, "router"
        ctx.emit("depth", self.spec.min + runs)
        ctx.emit("keep", keep)
        ctx.path = path
        batch, time = runs.shape
        costs = {length: cost(length) for length in {time, *(max(each) for each in counts)} if length}
        for each in counts:
            run = sum(map(bool, each)) * max(each)
            ctx.skipped.append(batch * time * costs[time] - (run * costs[max(each)] if run else 0.0))

    def flops(self) -> float:
        """Floating-point operations per token."""
        return 2.0 * (self.inner.weight.numel() + self.outer.weight.numel())


def _rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


@torch.no_grad()
def depths(model: Any, tokens: Tensor) -> Tensor:
    """How many blocks each of `tokens` int64 [B, T] runs, int64 [B, T]: easy tokens few, hard ones many."""
    trace = Trace(frozenset({"depth"}))
    model.hidden(tokens, trace=trace)
    return trace.records[0].value if trace.records else torch.full_like(tokens, model.spec.blocks)

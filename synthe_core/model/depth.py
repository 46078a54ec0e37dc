"""Mixture of depths: a router selects the tokens of each block, which run as a shorter sequence.

A router after the first `min` blocks scores every token; the token runs a later block where its score is above that
block's threshold. Thresholds are moved between training steps only, so a token's depth depends on its own stream
only, and decoding one token at a time gives the same depths as one long pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from synthe_core import state as states
from synthe_core.layers.adapter_batch import per_adapter, select_rows
from synthe_core.layers.conditional_gate import UNSET, moved_threshold
from synthe_core.layers.learner import Pass, Spec
from synthe_core.layers.projection import matrix_size, project_in
from synthe_core.layers.trace import Emission, Trace, schema
from synthe_core.model.block import RMSNorm
from synthe_core.ops.activations import silu
from synthe_core.ops.frames import indices_of_true
from synthe_core.ops.hashing import hash_uniform
from synthe_core.ops.linear import linear
from synthe_core.ops.rms_norm import rms_norm

EXPLORATION_SEED = 1 << 40  # the seed that selects the exploring tokens, by position
THRESHOLD_RATE = 0.3  # share of the distance to the step's quantile by which a threshold moves each step
WEIGHT_SCALE = 8.0  # the router's weights are stored this much larger than they act: a step of Adam changes them less
TINY = 1e-12


class DepthSpec(Spec):
    """How deep a token goes: every token runs `min` blocks, and on average `target` of those that it may skip."""

    min: int = Field(2, ge=1, description="blocks that every token runs; the router reads their output")
    target: float = Field(0.6, gt=0, lt=1, description="share of the other blocks that a token runs on average")
    mode: Literal["exit", "skip"] = Field(
        "exit",
        description="exit: one score, a token runs no block after its depth; skip: a score for each block",
    )
    every: int = Field(1, ge=1, description="skip: only every n-th of the other blocks may be skipped")
    hidden: int = Field(64, ge=1, description="units of the router's hidden layer")
    explore: float = Field(
        0.0625, gt=0, lt=1, description="in training, the share of tokens that run every block, to measure its gain"
    )

    @model_validator(mode="after")
    def _every_is_for_skip(self) -> DepthSpec:
        if self.mode == "exit" and self.every > 1:
            raise ValueError(f"every: {self.every} is for mode: skip; a token that exits runs no later block")
        return self

    def places(self, blocks: int) -> range:
        """The indices, below `blocks`, of the blocks that a token may skip."""
        return range(self.min, blocks, self.every)

    def rates(self, routed: int) -> list[float]:
        """The share of tokens to run each of `routed` blocks; their mean is `target`.

        skip: `target` everywhere. exit: falling evenly from block to block, as steeply as keeps all of them in (0, 1).
        """
        steep = 0.0 if self.mode == "skip" else min(self.target, 1 - self.target)
        return [self.target + steep * (1 - (2 * block + 1) / routed) for block in range(routed)]


class Choice(NamedTuple):
    """Which tokens run one block: `keep` bool [B, T], and how many in each row."""

    keep: Tensor
    counts: list[int]

    @classmethod
    def all_tokens(cls, ctx: Pass) -> Choice:
        """All tokens, for a pass without a router."""
        if ctx.mask is None:
            batch, time = ctx.positions.shape
            return cls(torch.ones_like(ctx.positions, dtype=torch.bool), [time] * batch)
        return cls(ctx.mask, ctx.mask.sum(1).tolist())

    def run(self, block: Any, x: Tensor, remembered: Sequence[Any], ctx: Pass) -> tuple[Tensor, list[Any]]:
        """The block over the selected tokens, gathered to the front; the others are unchanged.

        x [B, T, D]; `remembered` is the block's state and, last, its clock: int64 [B], how many tokens it has seen.
        Positions within the block count those tokens, so windows and ticks are in tokens of the block. It publishes
        signals for its tokens; the others keep the signal of the block before. What it shares no later block has.
        """
        *before, clock = remembered
        time = self.keep.shape[1]
        if min(self.counts) == time:
            steps = torch.arange(time, device=x.device)
            y, after = block(
                x, before, replace(ctx, positions=clock[:, None] + steps, start=None, lengths=None, mask=None)
            )
            return y, [*after, clock + time]
        groups = group_by_count(self.counts)
        if not groups:
            return x, list(remembered)
        y, after = x, []
        for rows in groups:
            y, state = self._some(block, rows, x, y, before, clock, ctx)
            after.append(state)
        at = [row for rows in groups for row in rows]
        if len(groups) > 1 or at != list(range(len(self.counts))):
            idle = [row for row, count in enumerate(self.counts) if not count]
            rest = [states.take(before, torch.tensor(idle, device=x.device))] if idle else []
            places = sorted(range(len(self.counts)), key=[*at, *idle].__getitem__)
            after = [states.take(states.join([*after, *rest]), torch.tensor(places, device=x.device))]
        return y, [*after[0], clock + self.keep.sum(1)]

    def _some(
        self, block: Any, chosen: list[int], x: Tensor, y: Tensor, before: Any, clock: Tensor, ctx: Pass
    ) -> tuple[Tensor, Any]:
        """The block over the selected tokens of some rows of x, written into y; and the state of those rows."""
        rows = None if chosen == list(range(len(x))) else torch.tensor(chosen, device=x.device)
        counts = [self.counts[row] for row in chosen]
        places = CompactIndex.of(self.keep, rows, max(counts))
        ragged = min(counts) != max(counts)
        inner = replace(
            ctx,
            positions=_rows(clock, rows)[:, None] + torch.arange(max(counts), device=x.device),
            start=None,
            lengths=places.real.sum(1) if ragged else None,
            mask=places.real if ragged else None,
            tokens=ctx.global_tokens(places.index % x.shape[1]),
            signals={name: places.gather(value) for name, value in ctx.signals.items()},
            shared={name: places.gather(value) for name, value in ctx.shared.items()},
            losses=[],
        )
        published = dict(inner.signals)
        with select_rows(chosen):
            new, after = block(places.gather(x), before if rows is None else states.take(before, rows), inner)
        for name, value in inner.signals.items():
            if value is not published.get(name):  # the blocks that every token runs have published the same names
                ctx.signals[name] = places.scatter(value, ctx.signals[name])
        share = sum(counts) / sum(self.counts)
        ctx.losses.extend((name, loss * share) for name, loss in inner.losses)
        return places.scatter(new, y), after


def group_by_count(counts: list[int]) -> list[list[int]]:
    """The rows with a count, in groups of similar counts, so that little of a group's pass is padding.

    At most four groups, of four rows or more; one where that would not save a twentieth.
    """
    rows = [row for row, count in enumerate(counts) if count]
    if not rows:
        return []
    ordered = sorted(rows, key=counts.__getitem__)
    size = max(4, -(-len(rows) // 4))
    groups = [ordered[start : start + size] for start in range(0, len(rows) - 3, size)] or [rows]
    groups[-1] = ordered[sum(map(len, groups[:-1])) :]
    if padded_tokens(groups, counts) > 0.95 * padded_tokens([rows], counts):
        return [rows]
    return [sorted(group) for group in groups]


def padded_tokens(groups: list[list[int]], counts: list[int]) -> int:
    """Tokens of the passes of these groups, padding included."""
    return sum(len(group) * max(counts[row] for row in group) for group in groups)


@dataclass(frozen=True)
class CompactIndex:
    """Where the selected tokens of a pass [B, T, ...] go in a shorter one [b, M, ...], and which of its places are
    real.

    index: int64 [b, M] into the pass with its rows laid end to end; a place that is not real repeats a token.
    """

    index: Tensor
    real: Tensor

    @classmethod
    def of(cls, keep: Tensor, rows: Tensor | None, longest: int) -> CompactIndex:
        """Of the tokens `keep` bool [B, T] of some rows, at most `longest` in each."""
        time = keep.shape[1]
        base = torch.arange(keep.shape[0], device=keep.device) * time
        keep, base = _rows(keep, rows), _rows(base, rows)
        rank = keep.cumsum(1)
        index = indices_of_true(keep, rank, longest)
        return cls(base[:, None] + index, torch.arange(longest, device=keep.device) < rank[:, -1:])

    def gather(self, x: Tensor) -> Tensor:
        """The selected tokens of x [B, T, ...] as [b, M, ...]."""
        return x.flatten(0, 1).index_select(0, self.index.flatten()).unflatten(0, self.index.shape)

    def scatter(self, y: Tensor, x: Tensor) -> Tensor:
        """x [B, T, ...] with the selected tokens replaced by those of y [b, M, ...]."""
        flat = x.flatten(0, 1)
        to = self.index.masked_fill(~self.real, flat.shape[0])  # places that are not real go to a spare row
        out = torch.cat([flat, flat[:1]]).index_copy_(0, to.flatten(), y.flatten(0, 1).to(x.dtype))
        return out[:-1].view_as(x)


@dataclass
class ExplorationSample:
    """N tokens of a pass that run every block, which train the router: `indices` int64 [N] in the rows laid end to end,
    their `scores` [N, S] with the router's gradient, and `streams`, the residual stream before and after each block."""

    indices: Tensor
    scores: Tensor
    streams: list[Tensor]

    def record(self, x: Tensor) -> None:
        """Stores the stream x [B, T, D] before or after a routed block, at these tokens."""
        self.streams.append(x.detach().flatten(0, 1).index_select(0, self.indices))

    def only(self, which: Tensor) -> ExplorationSample:
        """Those that are True in bool [N]."""
        return ExplorationSample(self.indices[which], self.scores[which], [x[which] for x in self.streams])

    @property
    def ends(self) -> list[Tensor]:
        """The streams before and after the blocks of each score, 2 S of [N, D]; a single score covers all blocks."""
        return [self.streams[0], self.streams[-1]] if self.scores.shape[1] == 1 else self.streams

    def router_loss(self, losses: Tensor) -> Tensor:
        """1 - the correlation of the scores with the blocks' gain: a scalar with the router's gradient.

        losses [2 S, N]: a token's cross-entropy at each of the `ends`, by the model's own head. A gain is the
        decrease over a block, clipped at three deviations.
        """
        if not len(self.indices):
            return self.scores.sum()
        gains = _standard((losses[::2] - losses[1::2]).T).clamp(-3, 3)
        return 1 - (_standard(self.scores) * gains).mean()


def _standard(x: Tensor) -> Tensor:
    """The columns of x [N, S] with mean 0 and variance 1; zero where they do not vary."""
    x = x - x.mean(0)
    return x * (x.square().mean(0) + TINY).rsqrt()


class Router(nn.Module):
    """s = w · norm(silu((W norm(x) + b) / 8)), |w| = 1: the depth that a token needs. It runs block j if s_j > t_j.

    x [B, T, D]. The last norm and |w| = 1 keep the scores at a scale of one. The thresholds t meet the budget: after
    each training step they move towards the quantiles of this step's scores at the target rates. They start at minus
    infinity, where every token runs every block. Slow changes of the decisions cost less quality.

    **Training.** A share `explore` of the tokens, selected by position, runs every block. Their gain is the decrease of
    the loss over the blocks, with the stream before a block read by the model's own head. The scores learn to correlate
    with that gain (see `ExplorationSample.router_loss`).
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
        self.places = spec.places(blocks)
        self.routed, self.always = len(self.places), blocks - len(self.places)
        self.norm = RMSNorm(width, eps)
        self.inner = project_in(width, spec.hidden, bias=True)
        self.outer = project_in(spec.hidden, 1 if spec.mode == "exit" else self.routed)
        with torch.no_grad():
            self.inner.weight.mul_(WEIGHT_SCALE)
            self.outer.weight.mul_(WEIGHT_SCALE)
        self.register_buffer("thresholds", torch.full((self.routed,), UNSET))

    def scores(self, x: Tensor) -> Tensor:
        """[B, T, 1] or [B, T, blocks], in float32 or float64 in any model.

        The stream is detached: the router's gradient, which compares tokens with each other, reaches its own weights
        only.
        """
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            x = rms_norm(x.detach().to(wide), self.norm.weight.to(wide), self.norm.eps, wide)
            x = silu(linear(x, self.inner.weight.to(wide), self.inner.bias.to(wide)) / WEIGHT_SCALE)
            x = F.rms_norm(x, (x.shape[-1],), eps=self.norm.eps)
            return linear(x, F.normalize(self.outer.weight.to(wide), dim=-1))

    def forward(
        self, x: Tensor, ctx: Pass, cost: Callable[[int], float]
    ) -> tuple[list[Choice], ExplorationSample | None]:
        """The tokens of x that each of the later blocks runs, and in training the sample that trains the router.

        `cost` is a block's FLOPs per token of a pass of that length.
        """
        if "router" in ctx.without:
            ctx.skip_flops(self.flops())
            return [Choice.all_tokens(ctx)] * self.routed, None
        scores = per_adapter((self.inner, self.outer), self.scores, x)
        keep = (scores.detach() > self.thresholds).movedim(-1, 0)  # [blocks, B, T]
        keep = keep if ctx.mask is None else keep & ctx.mask
        selected, sample = keep, None
        if self.training:
            explored = hash_uniform(ctx.positions, EXPLORATION_SEED) < self.spec.explore
            explored = explored if ctx.mask is None else explored & ctx.mask
            keep = keep | explored
            at = explored.flatten().nonzero().squeeze(1)
            sample = ExplorationSample(at, scores.flatten(0, 1).index_select(0, at), [])
            ctx.buffer_updates.append((self.thresholds, self._moved_thresholds(scores.detach(), ctx.mask)))
        counts = keep.sum(-1).tolist()  # lengths decide shapes: this waits for the device
        self._report(selected, keep, counts, ctx, cost)
        return [Choice(*each) for each in zip(keep.unbind(), counts, strict=True)], sample

    def _moved_thresholds(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """The thresholds after a training step with these scores."""
        columns = scores.expand(*scores.shape[:-1], self.routed).unbind(-1)
        rates = self.spec.rates(self.routed)
        return torch.stack(
            [
                moved_threshold(threshold, column, mask, 1 - rate, THRESHOLD_RATE)
                for threshold, column, rate in zip(self.thresholds, columns, rates, strict=True)
            ]
        )

    def _report(
        self, selected: Tensor, keep: Tensor, counts: list[list[int]], ctx: Pass, cost: Callable[[int], float]
    ) -> None:
        """Reports depth to the log (without exploring tokens) and the trace, and the skipped operations, which exclude
        the padding of short passes."""
        runs = keep.sum(0)
        tokens = runs.numel() if ctx.mask is None else ctx.mask.sum().clamp_min(1)
        ctx.measures.append(("depth", selected.sum() / (tokens * self.routed)))
        path, ctx.path = ctx.path, "router"
        ctx.emit("depth", self.always + runs)
        ctx.emit("keep", keep)
        ctx.path = path
        batch, time = runs.shape
        for each in counts:
            groups = [range(batch)] if min(each) == time else group_by_count(each)
            longest = [max(each[row] for row in group) for group in groups]
            ran = sum(len(group) * length * cost(length) for group, length in zip(groups, longest, strict=True))
            ctx.skipped.append(batch * time * cost(time) - ran)

    def flops(self) -> float:
        """Floating-point operations per token."""
        return 2.0 * (matrix_size(self.inner) + matrix_size(self.outer))


def _rows(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


@torch.no_grad()
def depths(model: Any, tokens: Tensor) -> Tensor:
    """How many blocks each of `tokens` int64 [B, T] runs, int64 [B, T]."""
    trace = Trace(frozenset({"depth"}))
    model.hidden(tokens, trace=trace)
    return trace.records[0].value if trace.records else torch.full_like(tokens, model.spec.blocks)

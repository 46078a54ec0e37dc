"""The slow tiers of a multiscale memory: one runs a learner on summaries of finished spans, one learns from tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synthe_core.layers import build
from synthe_core.layers.learner import Learner, Pass
from synthe_core.layers.projection import matrix_size, project_in
from synthe_core.layers.test_time import SpanMemory, SpanSpec, surprise_signals
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.frames import Spans
from synthe_core.ops.gated_average import gated_average
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.span_memory import SpanState

EPS = 1e-5
MIN_GATE_SUM = 1e-6  # lower bound of a sum of gates in a denominator
PERSISTENCE = 4.0  # initial timescale of the persistence score, in spans
ITEM_FLOPS = 6  # a channel of an item: two for its gate, one to weight it, one to add it, and two for the rest


class TierOutput(NamedTuple):
    """The output `value` [B, N, E] of a slow tier over a pass of T tokens.

    With `spans` it has one entry a finished span, after a first one from before the pass; without, one a token.
    `persistence` [B, N], in (0, 1), has the same entries, None where no tier reads it. `surprise` is [B, T].
    """

    value: Tensor
    spans: Spans | None
    surprise: Tensor | None
    persistence: Tensor | None

    def at_tokens(self, x: Tensor) -> Tensor:
        """The entry of x [B, N, ...] that each token reads, [B, T, ...]."""
        return x if self.spans is None else self.spans.hold(x)


class SummaryItems(NamedTuple):
    """What a tier summarises.

    value [B, N, E]; weight [B, N], None for 1; span int64 [B, N], the span of this pass that an item belongs to; mask
    bool [B, N], which items are real, None for all; at int64 [B, N], their tokens in the pass, None for one each.
    """

    value: Tensor
    weight: Tensor | None
    span: Tensor
    mask: Tensor | None
    at: Tensor | None = None


class Persistence(nn.Module):
    """p = λ p + (1 - λ) agreement, item by item: how well a memory predicted the recent items."""

    def __init__(self, horizon: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor([math.log(horizon - 1)]))

    def forward(self, agreement: Tensor, before: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Every p [B, N] and the last [B, 1] of agreement [B, N] and p before, [B, 1]."""
        logits = self.logit.to(agreement.dtype).expand(*agreement.shape, 1)
        if mask is not None:
            logits = logits.masked_fill(~mask[..., None], math.inf)
        each, last = gated_average(logits, agreement[..., None], before)
        return each[..., 0], last


class SummaryState(NamedTuple):
    """The rule's state; sums [B, F + 2] of the current span; the last reading [B, E], its surprise [B, 1] and
    persistence [B, 1] (0 columns where they are not computed)."""

    rule: Any
    sums: Tensor
    reading: Tensor
    surprise: Tensor
    persistence: Tensor


class SummaryTier(nn.Module):
    """A learner with one token a span: z = norm(W Σ g p h / Σ g p), g = σ(w · h) over the span's items h, and

        r = m + rule(m),   m = z Σ g p / Σ g

    where p, the persistence of the tier below, scales down what did not persist (1 without). r is constant until the
    next span is finished. The tier predicts the next summary as P r; its error ‖P r - z‖² / ‖z‖² is the surprise,
    and 1 / (1 + surprise) the agreement whose running average is this tier's own persistence. P is trained by an
    auxiliary loss, the mean of that error with z detached.

    The state of an unfinished span is three running sums, so that decoding is O(1).
    """

    emits = schema({"gate": Emission("B T", "gates", "weight of an item of the tier below in the span's summary")})

    def __init__(self, rule: Any, size: int, source: int, predicts: bool, promotes: bool, loss: float) -> None:
        super().__init__()
        self.size, self.source, self.loss = size, source, loss
        self.gate = project_in(source, 1)
        self.compress = project_in(source, size)
        self.rule: Learner[Any] = build(rule, size)
        self.predict = project_in(size, size) if predicts else None
        self.persistence = Persistence(PERSISTENCE) if promotes else None
        self.norm, self.norm_eps = nn.Parameter(torch.ones(size)), EPS

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> SummaryState:
        def zeros(columns: int) -> Tensor:
            return torch.zeros(batch, columns, dtype=dtype, device=device)

        expected = torch.ones_like(zeros(self.predict is not None))
        rule = self.rule.init_state(batch, device=device)
        return SummaryState(
            rule, zeros(self.source + 2), zeros(self.size), expected, zeros(self.persistence is not None)
        )

    def forward(
        self, items: SummaryItems, state: SummaryState, spans: Spans, ctx: Pass
    ) -> tuple[TierOutput, SummaryState]:
        sums = self._sums(items, state, spans, ctx)
        ended, pending = sums[:, :-1], spans.last(sums)
        state = state._replace(sums=pending)
        values, surprises, scores = (x[:, None] for x in (state.reading, state.surprise, state.persistence))
        if ended.shape[1]:
            z, m = self._summary(ended, items.value.dtype)
            update, rule = self.rule(m, state.rule, span_pass(spans, ctx))
            values = torch.cat([values, (m + update).to(values.dtype)], 1)
            state = state._replace(rule=rule, reading=spans.last(values))
            if self.predict is not None:
                error = self._error(values[:, :-1].to(z.dtype), z, spans.mask, ctx)
                surprises = torch.cat([surprises, error[..., None]], 1)
                state = state._replace(surprise=spans.last(surprises))
                if self.persistence is not None:
                    score, last = self.persistence(1 / (1 + error), state.persistence, spans.mask)
                    scores = torch.cat([scores, score[..., None]], 1)
                    state = state._replace(persistence=last)
        surprise = None if self.predict is None else spans.hold(surprises)[..., 0]
        return TierOutput(values, spans, surprise, None if self.persistence is None else scores[..., 0]), state

    def _sums(self, items: SummaryItems, state: SummaryState, spans: Spans, ctx: Pass) -> Tensor:
        """Σ g p h, Σ g p and Σ g of every span that has items in this pass, the pending one first."""
        dtype = state.sums.dtype
        gate = sigmoid(self.gate(items.value).to(dtype))
        if items.mask is not None:
            gate = gate * items.mask[..., None]
        ctx.emit("gate", gate[..., 0], items.at)
        amount = gate if items.weight is None else gate * items.weight[..., None]
        value = items.value.to(dtype)
        if items.mask is not None:
            value = value.masked_fill(~items.mask[..., None], 0.0)
        terms = torch.cat([amount * value, amount, gate], -1)
        count = spans.token.shape[1] + 1
        row = torch.arange(len(terms), device=terms.device)[:, None] * count
        sums = terms.new_zeros(len(terms) * count, terms.shape[-1])
        sums = sums.index_add(0, (row + items.span).flatten(), terms.flatten(0, 1)).unflatten(0, (-1, count))
        return sums + nn.functional.pad(state.sums[:, None], (0, 0, 0, count - 1))

    def _summary(self, sums: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """z, and its persistent part m; both [B, N, E]."""
        total, amount, gates = sums.split([self.source, 1, 1], -1)
        z = self.compress((total / amount.clamp_min(MIN_GATE_SUM)).to(dtype))
        z = rms_norm(z.to(sums.dtype), torch.ones_like(self.norm, dtype=sums.dtype), EPS, sums.dtype)
        return z.to(dtype), (z * (amount / gates.clamp_min(MIN_GATE_SUM))).to(dtype)

    def _error(self, reading: Tensor, z: Tensor, mask: Tensor | None, ctx: Pass) -> Tensor:
        """‖P r - z‖² / ‖z‖² of every summary [B, N]."""
        assert self.predict is not None
        dtype = accumulation_dtype(self.norm)
        guess, z = self.predict(reading).to(dtype), z.to(dtype)
        size = z.square().mean(-1) + EPS
        if self.training:
            error = (guess - z.detach()).square().mean(-1) / size.detach()
            real = torch.ones_like(error) if mask is None else mask.to(dtype)
            ctx.losses.append(("multiscale_prediction", self.loss * (error * real).sum() / real.sum().clamp_min(1)))
        return (guess - z).square().mean(-1) / size

    def flops(self, time: int, every: int, source_every: int) -> float:
        """Per token: the items at their own rate; the matrices and the rule once a span."""
        spans = (time - 1) // every
        square = 0 if self.predict is None else self.size * self.size
        once = 2.0 * (matrix_size(self.compress) + square) + (self.rule.flops(spans) if spans else 0.0)
        items = time if source_every == 1 else (time - 1) // source_every
        return (once * spans + ITEM_FLOPS * self.source * items) / time


class SpanTierState(NamedTuple):
    """The memory's state, and persistence [B, 1] (0 columns where it is not computed)."""

    memory: SpanState
    persistence: Tensor


class SpanTier(nn.Module):
    """A memory that takes a gradient step on every span of tokens (see `span_memory`), and is read by every token.

    Persistence of the tier below scales how fast a token is output. This tier's own agreement is 1 / (1 + its error).
    A reading r is normalised as r / √(1 + mean r²): what the memory recalls has unit scale, and where nothing is stored
    r stays near zero. Normalised to unit scale as summaries are, it would be noise at most tokens.
    """

    emits = SpanMemory.emits

    def __init__(self, rule: SpanSpec, size: int, every: int, width: int, promotes: bool) -> None:
        super().__init__()
        self.size, self.every = size, every
        self.rule = SpanMemory(rule, size, every, width)
        self.persistence = Persistence(PERSISTENCE * every) if promotes else None
        self.norm, self.norm_eps = nn.Parameter(torch.ones(size)), 1.0

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> SpanTierState:
        score = torch.zeros(batch, int(self.persistence is not None), dtype=dtype, device=device)
        return SpanTierState(self.rule.init_state(batch, dtype, device), score)

    def forward(
        self, x: Tensor, written: Tensor, weight: Tensor | None, state: SpanTierState, spans: Spans, ctx: Pass
    ) -> tuple[TierOutput, SpanTierState]:
        output = self.rule(x, written, weight, state.memory, spans, ctx)
        surprise, agreement = surprise_signals(output.error)
        if self.persistence is None:
            return TierOutput(output.read, None, surprise, None), state._replace(memory=output.state)
        score, last = self.persistence(agreement, state.persistence, ctx.mask)
        return TierOutput(output.read, None, surprise, score), SpanTierState(output.state, last)

    def flops(self, time: int) -> float:
        return self.rule.flops(time)


def accumulation_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype of sums and errors: float32, or float64 where the parameters are."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def span_pass(spans: Spans, ctx: Pass) -> Pass:
    """The pass of a learner with one token a span, whose position is the span's index."""
    return replace(
        ctx,
        positions=spans.span,
        start=None,
        lengths=None if spans.mask is None else spans.lengths,
        mask=spans.mask,
        signals={},
        tokens=ctx.global_tokens(spans.token),
        path=f"{ctx.path}.rule",
    )

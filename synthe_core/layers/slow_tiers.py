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
from synthe_core.layers.test_time import SpanMemory, SpanSpec, told_surprise
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.frames import Spans
from synthe_core.ops.gated_average import gated_average
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.span_memory import SpanState

EPS = 1e-5
LEAST = 1e-6  # of a sum of gates that is divided by
PERSISTENCE = 4.0  # spans that the score of persistence reaches back at first
ITEM_FLOPS = 6  # a channel of what is summarised: two for its gate, one to weigh it, one to add it, and spare


class Reading(NamedTuple):
    """What a slow tier has to say, `value` [B, N, E], about a pass of T tokens.

    With `spans` there is one entry a finished span, after a first one for what was held before the pass; without, one a
    token. `persistence` [B, N], in (0, 1), is of the same entries, None where nobody asks; `surprise` [B, T] is held.
    """

    value: Tensor
    spans: Spans | None
    surprise: Tensor | None
    persistence: Tensor | None

    def at_tokens(self, x: Tensor) -> Tensor:
        """Entries [B, N, ...] as each token sees them, [B, T, ...]."""
        return x if self.spans is None else self.spans.hold(x)


class Items(NamedTuple):
    """What a tier summarises: value [B, N, E], how much of each, weight [B, N] or None for all, which span of this pass
    it belongs to, int64 [B, N], which are real, bool [B, N] or None for all, and at which tokens they stand, int64
    [B, N] or None for one each."""

    value: Tensor
    weight: Tensor | None
    span: Tensor
    mask: Tensor | None
    at: Tensor | None = None


class Persistence(nn.Module):
    """p = λ p + (1 - λ) agreement, item by item: how well a memory has predicted what came, for a few spans."""

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


class Held(NamedTuple):
    """The rule's state; sums [B, F + 2] of the span that has begun; the reading [B, E], its surprise [B, 1] and
    persistence [B, 1] as they are held (0 columns where nobody asks)."""

    rule: Any
    sums: Tensor
    reading: Tensor
    surprise: Tensor
    persistence: Tensor


class SummaryTier(nn.Module):
    """A learner with one token a span: z = norm(W Σ g p h / Σ g p), g = σ(w · h) over the span's items h, and

        r = m + rule(m),   m = z Σ g p / Σ g

    where p, the persistence of the tier below, scales down what has not lasted (1 without). r is held until the next
    span is finished. The tier expects of the next summary what P r says; its error ‖P r - z‖² / ‖z‖² is the surprise,
    and 1 / (1 + surprise) the agreement whose running average is this tier's own persistence. P is taught to predict by
    an auxiliary loss, the mean of that error with z held constant.

    Everything about a span that is not finished is three running sums, so that decoding keeps O(1).
    """

    emits = schema({"gate": Emission("B T", "gates", "what of the tier below goes into the span's summary")})

    def __init__(self, rule: Any, size: int, source: int, predicts: bool, promotes: bool, loss: float) -> None:
        super().__init__()
        self.size, self.source, self.loss = size, source, loss
        self.gate = project_in(source, 1)
        self.compress = project_in(source, size)
        self.rule: Learner[Any] = build(rule, size)
        self.predict = project_in(size, size) if predicts else None
        self.persistence = Persistence(PERSISTENCE) if promotes else None
        self.norm, self.quiet = nn.Parameter(torch.ones(size)), EPS

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Held:
        def zeros(columns: int) -> Tensor:
            return torch.zeros(batch, columns, dtype=dtype, device=device)

        expected = torch.ones_like(zeros(self.predict is not None))
        rule = self.rule.init_state(batch, device=device)
        return Held(rule, zeros(self.source + 2), zeros(self.size), expected, zeros(self.persistence is not None))

    def forward(self, items: Items, state: Held, spans: Spans, ctx: Pass) -> tuple[Reading, Held]:
        sums = self._sums(items, state, spans, ctx)
        ended, pending = sums[:, :-1], spans.last(sums)
        state = state._replace(sums=pending)
        values, surprises, scores = (x[:, None] for x in (state.reading, state.surprise, state.persistence))
        if ended.shape[1]:
            z, m = self._summary(ended, items.value.dtype)
            said, rule = self.rule(m, state.rule, span_pass(spans, ctx))
            values = torch.cat([values, (m + said).to(values.dtype)], 1)
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
        return Reading(values, spans, surprise, None if self.persistence is None else scores[..., 0]), state

    def _sums(self, items: Items, state: Held, spans: Spans, ctx: Pass) -> Tensor:
        """Σ g p h, Σ g p and Σ g of every span that has items in this pass, the one that was pending first."""
        dtype = state.sums.dtype
        gate = sigmoid(self.gate(items.value).to(dtype))
        if items.mask is not None:
            gate = gate * items.mask[..., None]
        ctx.emit("gate", gate[..., 0], items.at)
        amount = gate if items.weight is None else gate * items.weight[..., None]
        value = items.value.to(dtype)
        if items.mask is not None:
            value = value.masked_fill(~items.mask[..., None], 0.0)
        told = torch.cat([amount * value, amount, gate], -1)
        count = spans.token.shape[1] + 1
        row = torch.arange(len(told), device=told.device)[:, None] * count
        sums = told.new_zeros(len(told) * count, told.shape[-1])
        sums = sums.index_add(0, (row + items.span).flatten(), told.flatten(0, 1)).unflatten(0, (-1, count))
        return sums + nn.functional.pad(state.sums[:, None], (0, 0, 0, count - 1))

    def _summary(self, sums: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """z, and as much of it as has lasted, m; both [B, N, E]."""
        total, amount, gates = sums.split([self.source, 1, 1], -1)
        z = self.compress((total / amount.clamp_min(LEAST)).to(dtype))
        z = rms_norm(z.to(sums.dtype), torch.ones_like(self.norm, dtype=sums.dtype), EPS, sums.dtype)
        return z.to(dtype), (z * (amount / gates.clamp_min(LEAST))).to(dtype)

    def _error(self, reading: Tensor, z: Tensor, mask: Tensor | None, ctx: Pass) -> Tensor:
        """‖P r - z‖² / ‖z‖² of every summary [B, N]."""
        assert self.predict is not None
        dtype = ctx_dtype(self.norm)
        guess, z = self.predict(reading).to(dtype), z.to(dtype)
        size = z.square().mean(-1) + EPS
        if self.training:
            error = (guess - z.detach()).square().mean(-1) / size.detach()
            real = torch.ones_like(error) if mask is None else mask.to(dtype)
            ctx.losses.append(("multiscale_prediction", self.loss * (error * real).sum() / real.sum().clamp_min(1)))
        return (guess - z).square().mean(-1) / size

    def flops(self, time: int, every: int, source_every: int) -> float:
        """Per token: what is summarised, at its own rate; the matrices and the rule once a span."""
        spans = (time - 1) // every
        square = 0 if self.predict is None else self.size * self.size
        once = 2.0 * (matrix_size(self.compress) + square) + (self.rule.flops(spans) if spans else 0.0)
        items = time if source_every == 1 else (time - 1) // source_every
        return (once * spans + ITEM_FLOPS * self.source * items) / time


class Taught(NamedTuple):
    """The memory's state, and persistence [B, 1] (0 columns where nobody asks)."""

    memory: SpanState
    persistence: Tensor


class SpanTier(nn.Module):
    """A memory that takes a gradient step on every span of tokens (see `span_memory`), and is read by every token.

    Persistence of the tier below scales how fast a token is learned. This tier's own agreement is 1 / (1 + its error).
    A reading r is heard as r / √(1 + mean r²): what the memory recalls has unit scale, and where it knows nothing r is
    near zero and has to stay so. Brought to unit scale as summaries are, it would be noise at most tokens.
    """

    emits = SpanMemory.emits

    def __init__(self, rule: SpanSpec, size: int, every: int, width: int, promotes: bool) -> None:
        super().__init__()
        self.size, self.every = size, every
        self.rule = SpanMemory(rule, size, every, width)
        self.persistence = Persistence(PERSISTENCE * every) if promotes else None
        self.norm, self.quiet = nn.Parameter(torch.ones(size)), 1.0

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Taught:
        score = torch.zeros(batch, int(self.persistence is not None), dtype=dtype, device=device)
        return Taught(self.rule.init_state(batch, dtype, device), score)

    def forward(
        self, x: Tensor, written: Tensor, weight: Tensor | None, state: Taught, spans: Spans, ctx: Pass
    ) -> tuple[Reading, Taught]:
        learned = self.rule(x, written, weight, state.memory, spans, ctx)
        surprise, agreement = told_surprise(learned.error)
        if self.persistence is None:
            return Reading(learned.read, None, surprise, None), state._replace(memory=learned.state)
        score, last = self.persistence(agreement, state.persistence, ctx.mask)
        return Reading(learned.read, None, surprise, score), Taught(learned.state, last)

    def flops(self, time: int) -> float:
        return self.rule.flops(time)


def ctx_dtype(parameter: Tensor) -> torch.dtype:
    """What sums and errors are computed in: float32, or float64 where the parameters are."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def span_pass(spans: Spans, ctx: Pass) -> Pass:
    """The pass of a learner with one token a span, whose position is the span's index."""
    return replace(
        ctx,
        positions=spans.span,
        lengths=None if spans.mask is None else spans.lengths,
        mask=spans.mask,
        signals={},
        tokens=ctx.among(spans.token),
        path=f"{ctx.path}.rule",
    )

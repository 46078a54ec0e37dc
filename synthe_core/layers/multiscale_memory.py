"""A memory of several time scales: learners in tiers, each slower than the one below and fed by what lasted in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema, model_validator
from torch import Tensor, nn

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.layers import LAYERS, build, parse
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, Spec
from synthe_core.layers.projection import matrix_size, project_in, project_out
from synthe_core.layers.slow_tiers import SpanTier, SummaryItems, SummaryTier, TierOutput
from synthe_core.layers.test_time import TTT
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.frames import Spans, gather_rows, last_position
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.quantization.matrix import count_parameters

PRIOR_GAIN = 0.5  # initial scale of a prior, over that of a learner's output
SWITCHES = ("surprise", "momentum", "test_time")
TINY = 1e-6  # added to squared lengths that are divided by
FAST_FLOPS = 9  # a channel and token: two for scale and shift, seven for the conflict

Rule = Annotated[
    SerializeAsAny[Spec],
    BeforeValidator(parse),
    WithJsonSchema({"type": "object", "properties": {"type": {"enum": list(LAYERS)}}, "required": ["type"]}),
]
"""Any learner of the table. Its schema names it only, as one multiscale memory may stand in another."""


class TierSpec(Spec):
    """One tier: the learner, its width and the length of its spans."""

    every: int = Field(
        ..., ge=1, description="tokens of a span; 1 for the first tier, then multiples of the one before"
    )
    size: int | None = Field(
        None, ge=1, description="channels; default the width, 5/32 of it for the second tier, 1/16 for those after"
    )
    rule: Rule = Field(..., description="the learner, such as {type: delta, heads: 4}, or test_time")


class MultiscaleState(NamedTuple):
    """The fast learner's state, those of the slow tiers, and the last position seen [B] (see `last_position`)."""

    fast: Any
    slow: tuple[Any, ...]
    last_position: Tensor


class MultiscaleMemory(Learner[MultiscaleState]):
    """Tier 1 runs on every token. Tier k > 1 learns once a span of K_k tokens, positions jK ... jK + K - 1, and its
    output for span j is available from position (j + 1) K on: a token reads finished spans only.

        f_t = tier_1(x_t)                                                            the fast reading
        r^k = tier_k of summaries of the tier below (for k = 2: of x + f)            fast → slow
        o^k = norm(r^k) ⊙ (1 + F o^{k+1}) + G o^{k+1}   (the slowest: norm(r^k))     slow → fast
        y_t = f_t ⊙ (1 + F_1 o^2) + G_1 o^2

    A rule of the table runs as a sequence of summaries, see `SummaryTier`; one of type `test_time` instead takes a
    gradient step on the tokens of every finished span, and every token reads the memory with a query of its own, see
    `SpanTier`, whose norm leaves small readings small. x [B, T, D]; state: what the tiers remember, and running sums of
    the spans that have begun.

    **Priors condition the readings, not what the tiers learn from.** A prior that entered tier 1's input would reach
    tier 2's next summary and so itself: a recurrence through all tiers, which nothing but a loop over spans can run. So
    all passes from fast to slow run without priors, and the passes from slow to fast condition the readings after, as
    in `tiers`. Tier 2's reading of span j is conditioned by the slower tiers' readings of spans that are finished by
    then.

    `consolidate`: every slow tier but the last tracks how well its memory predicted the last few spans; that score
    scales its items in the next tier's summaries. Forgetting is each rule's own: the delta rule erases what new
    evidence contradicts. `reset_every: N` empties all tiers at positions N, 2N ... Positions are absolute and may have
    gaps, so that any split of a sequence has the same spans and resets.

    Publishes causal signals [B, T]: "surprise", the relative squared error of tier 2's prediction of its last summary
    (with `test_time`, this token), "confidence" = 1 / (1 + surprise), and "conflict" in [0, 1], (1 - cos) / 2 between
    what tier 1 and what the slower tiers add to the residual stream, f_t and G_1 o^2.

    Raises InputError for sizes that do not fit a rule, and for rules that cannot be decoded.
    Sources: Koutník et al. 2014 (clocks), Perez et al. 2018 (scale and shift), Sun et al. 2024, Behrouz et al. 2025.
    """

    class Config(LearnerConfig):
        type: Literal["multiscale_memory"] = "multiscale_memory"
        tiers: list[TierSpec] = Field(
            default_factory=lambda: [
                TierSpec(every=1, rule=parse("momentum")),
                TierSpec(every=16, rule=parse({"type": "delta", "heads": 4})),
                TierSpec(every=128, rule=parse("kalman")),
            ],
            min_length=1,
            description="the fastest first",
        )
        consolidate: bool = Field(True, description="weight items of the next tier by their persistence in this one")
        surprise: bool = Field(True, description="false switches surprise off in every slow `test_time` rule")
        momentum: bool = Field(True, description="false switches momentum off in every slow `test_time` rule")
        test_time: bool = Field(True, description="false makes every slow `test_time` rule a delta rule")
        prediction: float = Field(0.01, gt=0, description="weight of the loss of the tiers' predictions")
        reset_every: int | None = Field(None, ge=1, description="reset all tiers every so many tokens; null = never")

        @model_validator(mode="after")
        def _spans_hold_spans(self) -> MultiscaleMemory.Config:
            periods = [tier.every for tier in self.tiers]
            if periods[0] != 1:
                raise ValueError(f"the first tier runs on every token: every: 1, not {periods[0]}")
            for below, above in pairwise(periods):
                if above <= below or above % below:
                    raise ValueError(f"every {above} after {below}: a span must contain whole spans of the tier below")
            if self.reset_every and self.reset_every % periods[-1]:
                raise ValueError(
                    f"reset_every {self.reset_every} is not a multiple of the slowest tier's {periods[-1]}"
                )
            return self

    emits = schema(
        {
            "tier_*": Emission("B T E", "memory", "the tier's output at every token, root mean square", "rms"),
            "persistence_*": Emission(
                "B T", "memory", "how well the tier predicted recent items: the weight of its consolidation"
            ),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        tiers = config.tiers
        for place, entry in enumerate(tiers):
            _check(entry.rule, place)
        self.periods = [tier.every for tier in tiers]
        sizes = [entry.size or _default_size(place, width) for place, entry in enumerate(tiers)]
        narrow = sizes[0] != width
        self.proj_in = project_in(width, sizes[0]) if narrow else nn.Identity()
        self.fast: Learner[Any] = build(tiers[0].rule, sizes[0])
        self.proj_out = project_in(sizes[0], width) if narrow else nn.Identity()
        self.slow = nn.ModuleList()
        source = width
        for place in range(1, len(tiers)):
            tier: SummaryTier | SpanTier
            rule, size = tiers[place].rule, sizes[place]
            promotes = config.consolidate and place < len(tiers) - 1
            if isinstance(rule, TTT.Config):
                switches = {name: getattr(rule, name) and getattr(config, name) for name in SWITCHES}
                tier = SpanTier(rule.model_copy(update=switches), size, self.periods[place], width, promotes)
            else:
                tier = SummaryTier(rule, size, source, promotes or place == 1, promotes, config.prediction)
            self.slow.append(tier)
            source = size
        readers = [width, *sizes[1:-1]]
        self.condition = nn.ModuleList(
            project_out(above, 2 * size) for size, above in zip(readers, sizes[1:], strict=False)
        )
        with torch.no_grad():
            for linear in self.condition:
                linear.weight.mul_(PRIOR_GAIN)  # type: ignore[operator]
        if config.reset_every:
            for learner in self._learners():
                if learner.state_bytes(1) != learner.state_bytes(1000):
                    raise InputError(
                        f"multiscale_memory: reset_every cannot empty {learner.config.type}, whose state grows",
                        "use a rule of constant state, or leave out reset_every",
                    )

    @classmethod
    def publishes(cls, config: Any) -> tuple[str, ...]:
        own = ("surprise", "confidence", "conflict") if len(config.tiers) > 1 else ()
        fast = config.tiers[0].rule
        return tuple(dict.fromkeys((*own, *LAYERS[fast.type].publishes(fast))))

    @classmethod
    def parts(cls, config: Any) -> dict[str, tuple[str, ...]]:
        """The slow tiers, each with the prior that it gives."""
        return {f"tier{k + 2}": (f"slow.{k}", f"condition.{k}") for k in range(len(config.tiers) - 1)}

    @classmethod
    def without_parts(cls, config: Any, parts: Sequence[str]) -> Any:
        return config.model_copy(update={"tiers": config.tiers[: len(config.tiers) - len(parts)]})

    @classmethod
    def reads(cls, config: Any) -> tuple[str, ...]:
        fast = config.tiers[0].rule
        return LAYERS[fast.type].reads(fast)

    @property
    def alignment(self) -> int | None:
        if self.fast.alignment is None or any(isinstance(tier, SummaryTier) for tier in self.slow):
            return None  # a span's summary is learned from at the token after it, in the next pass
        return math.lcm(self.fast.alignment, *self.periods)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> MultiscaleState:
        dtype = self.state_dtype
        slow = tuple(tier.init_state(batch, dtype, device) for tier in self.slow)  # type: ignore[operator]
        seen = torch.full((batch,), -1, dtype=dtype, device=device)
        return MultiscaleState(self.fast.init_state(batch, device=device), slow, seen)

    def forward(self, x: Tensor, state: MultiscaleState | None, ctx: Pass) -> tuple[Tensor, MultiscaleState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        return self._run(x, state, ctx) if self.config.reset_every is None else self._run_with_resets(x, state, ctx)

    def _run_with_resets(self, x: Tensor, state: MultiscaleState, ctx: Pass) -> tuple[Tensor, MultiscaleState]:
        """In pieces that end where some row is reset."""
        finished = Spans.of(self.config.reset_every, ctx.positions, ctx.mask, state.last_position).finished
        cuts = sorted({0, *finished.any(0).nonzero()[:, 0].tolist(), x.shape[1]})
        fresh = self.init_state(x.shape[0], device=x.device)
        signals, outputs = [], []
        for start, end in pairwise(cuts):
            resets = finished[:, start]
            state = states.map_leaves(lambda old, new, rows=resets: _where(rows, new, old), state, fresh)
            piece = replace(
                ctx,
                positions=ctx.positions[:, start:end],
                start=None,
                lengths=None if ctx.lengths is None else (ctx.lengths - start).clamp(0, end - start),
                mask=None if ctx.mask is None else ctx.mask[:, start:end],
                tokens=ctx.global_tokens(torch.arange(start, end, device=x.device).expand(len(x), -1)),
                signals={name: signal[:, start:end] for name, signal in ctx.signals.items()},
                losses=[],
            )
            y, state = self._run(x[:, start:end], state, piece)
            share = (end - start) / x.shape[1]
            ctx.losses.extend((name, share * loss) for name, loss in piece.losses)
            outputs.append(y)
            signals.append(piece.signals)
        ctx.signals.update({name: torch.cat([each[name] for each in signals], 1) for name in signals[0]})
        return torch.cat(outputs, 1), state

    def _run(self, x: Tensor, state: MultiscaleState, ctx: Pass) -> tuple[Tensor, MultiscaleState]:
        path = ctx.path
        ctx.path = f"{path}.fast"
        fast, fast_state = self.fast(self.proj_in(x), state.fast, ctx)
        fast = self.proj_out(fast)
        readings: list[TierOutput] = []
        after: list[Any] = []
        for place, (tier, before) in enumerate(zip(self.slow, state.slow, strict=True)):
            ctx.path = f"{path}.slow.{place}"
            if ctx.path in ctx.without:
                ctx.skip_flops(self.flops(x.shape[1]) - self._flops(x.shape[1], place))
                after.extend(state.slow[place:])
                break
            spans = Spans.of(self.periods[place + 1], ctx.positions, ctx.mask, state.last_position)
            below = readings[-1] if readings else None
            reading, new_state = self._run_tier(tier, x, x + fast, below, spans, before, ctx)
            readings.append(reading)
            after.append(new_state)
        ctx.path = path
        last = last_position(ctx.positions, ctx.lengths, state.last_position)
        new = MultiscaleState(fast_state, tuple(after), last)
        if not readings:
            return fast, new
        scale, shift = self._prior(readings, x.dtype)
        surprise = readings[0].surprise
        assert surprise is not None
        ctx.signals["surprise"], ctx.signals["confidence"] = surprise, 1 / (1 + surprise)
        ctx.signals["conflict"] = (1 - _cosine(fast.to(self.state_dtype), shift.to(self.state_dtype))) / 2
        if ctx.trace is not None:
            self._emit_tiers(fast, readings, ctx)
        return fast * (1 + scale) + shift, new

    def _run_tier(
        self, tier: Any, x: Tensor, stream: Tensor, below: TierOutput | None, spans: Spans, state: Any, ctx: Pass
    ) -> tuple[TierOutput, Any]:
        """The output of `tier`, and its state after. `stream` [B, T, D] is the residual stream after tier 1."""
        score = None if below is None else below.persistence
        if isinstance(tier, SpanTier):
            weight = None if below is None or score is None else below.at_tokens(score)
            return tier(x, stream, weight, state, spans, ctx)
        if below is None or below.spans is None:
            items = SummaryItems(stream if below is None else below.value, score, spans.num_finished, ctx.mask)
        else:  # the n-th span below belongs to the span that was pending before its token
            which = gather_rows(spans.num_finished - spans.finished.long(), below.spans.token)
            items = SummaryItems(
                below.value[:, 1:], None if score is None else score[:, 1:], which, below.spans.mask, below.spans.token
            )
        return tier(items._replace(value=items.value.to(x.dtype)), state, spans, ctx)

    def _prior(self, readings: list[TierOutput], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and shift [B, T, D] for the fast reading, each slow reading conditioned by the tiers above it."""
        above: Tensor | None = None
        clock: Spans | None = None  # of `above`; None where it has an entry a token
        for place in reversed(range(len(readings))):
            value, own_clock = readings[place].value, readings[place].spans
            tier: Any = self.slow[place]
            own = rms_norm(value, tier.norm.to(value.dtype), tier.norm_eps, value.dtype)
            if above is not None:
                prior = self.condition[place + 1](above.to(dtype))
                if clock is not None and own_clock is not None:
                    # the entry from before the pass is conditioned by that of the tier above
                    known = F.pad(gather_rows(clock.num_finished, own_clock.token), (1, 0))
                    prior = gather_rows(prior, known)
                else:
                    prior = prior if clock is None else clock.hold(prior)
                    own, own_clock = readings[place].at_tokens(own), None
                scale, shift = prior.chunk(2, -1)
                own = own * (1 + scale) + shift
            above, clock = own, own_clock
        assert above is not None
        prior = self.condition[0](above.to(dtype))
        scale, shift = (prior if clock is None else clock.hold(prior)).chunk(2, -1)
        return scale, shift

    def _emit_tiers(self, fast: Tensor, readings: list[TierOutput], ctx: Pass) -> None:
        """tier_1, tier_2 ... at every token, and persistence_2 ... of the tiers that have one."""
        ctx.emit("tier_1", fast)
        for place, reading in enumerate(readings, start=2):
            ctx.emit(f"tier_{place}", reading.at_tokens(reading.value))
            if reading.persistence is not None:
                ctx.emit(f"persistence_{place}", reading.at_tokens(reading.persistence))

    def _learners(self) -> list[Learner[Any]]:
        """The tiers' learners; the memory of a `SpanTier` is none."""
        return [self.fast, *(tier.rule for tier in self.slow if isinstance(tier, SummaryTier))]

    def state_bytes(self, time: int) -> int:
        fresh = states.nbytes(self.init_state(1, device="meta"))
        ticks = [max(1, (time - 1) // every) for every in self.periods]
        inner = [(self.fast, time)]
        inner += [(t.rule, n) for t, n in zip(self.slow, ticks[1:], strict=True) if isinstance(t, SummaryTier)]
        return fresh + sum(rule.state_bytes(n) - rule.state_bytes(1) for rule, n in inner)

    def active_parameters(self) -> int:
        idle = sum(count_parameters(each) - each.active_parameters() for each in self._learners())
        return super().active_parameters() - idle

    def flops(self, time: int) -> float:
        """The tiers and the priors, at the tokens and spans that they run at."""
        return self._flops(time, len(self.slow))

    def _flops(self, time: int, count: int) -> float:
        """With the first `count` slow tiers only."""
        narrow = [m for m in (self.proj_in, self.proj_out) if isinstance(m, nn.Linear)]
        total = self.fast.flops(time) + 2.0 * sum(matrix_size(m) for m in narrow)
        total += FAST_FLOPS * self.width if count else 0
        source = 1
        rate = []  # priors of each tier per token
        for tier, every in list(zip(self.slow, self.periods[1:], strict=True))[:count]:
            if isinstance(tier, SummaryTier):
                total += tier.flops(time, every, source)
                source = every
            else:
                total += tier.flops(time)  # type: ignore[operator]
                source = 1
            rate.append(1.0 if source == 1 else ((time - 1) // every + 1) / time)
        for place in reversed(range(len(rate))):
            above = rate[place + 1] if place + 1 < len(rate) else 0.0
            if above == 1.0:
                rate[place] = 1.0  # a tier that is conditioned at every token has an entry a token
            total += 2.0 * rate[place] * matrix_size(self.condition[place])
        return total


def _check(rule: Any, place: int) -> None:
    """InputError for a rule that a tier does not support."""
    learner: Any = LAYERS[rule.type]
    if not learner.causal:
        raise InputError(
            f"multiscale_memory: {rule.type} sees the whole text", "a tier's rule must be causal, such as delta"
        )
    if place and (signals := learner.reads(rule)):
        raise InputError(
            f"multiscale_memory: {rule.type} reads the signal {signals[0]}, of which a slow tier has none",
            "give it to tier 1",
        )
    if place and isinstance(rule, TTT.Config):
        for key in ("size", "span"):
            if getattr(rule, key) != TTT.Config.model_fields[key].default:
                raise InputError(
                    f"multiscale_memory: tier {place + 1} sets {key} in its rule",
                    "the tier's own `size` and `every` decide there",
                )


def _default_size(place: int, width: int) -> int:
    """Default channels of the tier at `place`: a multiple of four from the second on."""
    if place == 0:
        return width
    return 4 * max(1, -(-width * (5 if place == 1 else 2) // 128))


def _where(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`one` in the rows that are True, `other` elsewhere."""
    return torch.where(rows.view(-1, *[1] * (one.dim() - 1)), one, other)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Over the last axis; 0 where either is zero."""
    lengths = (one.square().sum(-1) + TINY) * (other.square().sum(-1) + TINY)
    return (one * other).sum(-1) * lengths.rsqrt()

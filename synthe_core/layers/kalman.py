"""A Kalman filter in every channel, or in heads of channels: an estimate with its variance, surprise and confidence."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, Spec
from synthe_core.layers.momentum import Timescale, log_spaced
from synthe_core.layers.projection import matrix_size, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, softplus
from synthe_core.ops.frames import Ticks
from synthe_core.ops.kalman_filter import kalman_filter
from synthe_core.ops.linear import block_linear
from synthe_core.ops.matrix_kalman_filter import matrix_kalman_filter
from synthe_core.ops.silu_gate import silu_gate

OP_FLOPS = 14  # a channel and measurement, the two signals included
HEAD_FLOPS = 8  # a head and token, of N³: two factors, I + Lᵀ J L, a triangular solution and a square
MIN_HEAD_NOISE = 1e-4  # of observations with a covariance, whose precision is 1 / r: it bounds the condition of P
MIN_NOISE = 1e-6  # of the process: without any, the gain tends to 0 and the filter stops to learn


class Covariance(Spec):
    """Heads of channels whose estimates are correlated."""

    heads: int = Field(ge=1, description="heads: the channels of one share a covariance")
    rank: int = Field(ge=1, description="rank N of a head's covariance: the numbers of which its channels are made")


class KalmanState(NamedTuple):
    """The filter's mean and variance [B, R]; with a covariance, mean [B, H, N] and variance [B, H, N, N]."""

    mean: Tensor
    variance: Tensor


class Estimate(NamedTuple):
    """The mean [B, T, R] of every channel after each token, and the two signals [B, T]."""

    mean: Tensor
    surprise: Tensor
    confidence: Tensor


class Kalman(Learner[KalmanState]):
    """y_t = W_o (μ_t ⊙ silu(W_g x_t)), μ and P from the diagonal Kalman filter of the observations z_t = W_z x_t, whose
    noise is r_t = softplus(W_r x_t + b).

    x [B, T, D], R = rank channels, state μ and P [B, R]. Transition a in (0, 1) and process noise q > 0 are learned,
    one a channel; initially the steady gain (at r = 1) is 1 / timescale, timescales spread evenly in their logarithm. A
    fresh state is μ = 0, P = 1: the first tokens count for much, and gains fall as evidence comes in.

    With `every: K` the filter's clock ticks at positions 0, K, 2K ... only: there it predicts and measures, in between
    its state is constant, and no observation is computed. Positions are absolute, so any split of a sequence has the
    same ticks.

    `covariance: {heads: H, rank: N}` gives the R / H channels of a head a covariance of rank N: z_t = C x_t + noise
    with a state x of N numbers and a loading C [R / H, N], both of the head, and P [N, N] in full, so that what is
    observed in one channel corrects the others. μ is C x then. It costs about 8 N³ operations a head and token.

    Publishes two causal signals [B, T] that carry gradient: "surprise", the squared innovation over the variance that
    was predicted for it, mean over channels (1 is as expected; with a covariance eᵀ S⁻¹ e a channel); and "confidence",
    r / (r + P⁻) = 1 - K, mean over channels, in (0, 1] (with a covariance 1 - tr K C a channel): the more certain the
    prediction is beside the observation, the closer to 1. Tokens not measured (between ticks, padding) have gain 0, so
    surprise 0 and confidence 1.

    Sources: Kalman 1960; Särkkä & García-Fernández 2020 for the parallel form.
    """

    class Config(LearnerConfig):
        type: Literal["kalman"] = "kalman"
        rank: int | None = Field(None, ge=1, description="channels filtered; default the width")
        every: int = Field(1, ge=1, description="measure at every K-th position only")
        covariance: Covariance | None = Field(
            None, description="heads of channels with a covariance of low rank; null: every channel by itself"
        )
        timescales: tuple[Timescale, Timescale] = Field(
            (2.0, 256.0), description="initial timescales of the filters in tokens, shortest and longest"
        )

    emits = schema(
        {
            "gain": Emission("B T E", "gates", "Kalman gain, mean over channels"),
            "innovation": Emission("B T E", "confidence", "measurement less prediction, root mean square", "rms"),
            "variance": Emission("B T E", "confidence", "variance of the estimate after the token, mean over channels"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.rank = config.rank or width
        self.observe = project_in(width, 2 * self.rank)
        self.gate = project_in(width, self.rank)
        self.out = project_out(self.rank, width)
        shape: tuple[int, ...] = (self.rank,)
        noise = 1.0
        if config.covariance is not None:
            heads, size = config.covariance.heads, config.covariance.rank
            if self.rank % heads:
                raise InputError(
                    f"kalman: {self.rank} channels are not divisible by {heads} heads",
                    nearest_divisor(self.rank, heads),
                )
            channels = self.rank // heads
            if size > channels:
                raise InputError(
                    f"kalman: a covariance of rank {size} for heads of {channels} channels", f"rank: {channels} at most"
                )
            self.loading = nn.Parameter(torch.randn(heads, channels, size) * size**-0.5)
            shape, noise = (heads, size), size / channels  # many channels observe one number
        gain = log_spaced(config.timescales, math.prod(shape)).double().reciprocal().view(shape)
        transition = 1 - gain / 4
        process = noise * (gain / (1 - gain) - transition.square() * gain)  # M - a² P, M = r K / (1 - K), P = r K
        self.transition_logit = nn.Parameter(torch.logit(transition).float())
        self.process_logit = nn.Parameter(_softplus_inverse((process - MIN_NOISE).clamp_min(MIN_NOISE)).float())
        self.noise_bias = nn.Parameter(_softplus_inverse(torch.ones(self.rank)))

    @property
    def composes(self) -> bool:
        return self.config.every == 1 and self.config.covariance is None  # else a rank may have no tick

    @classmethod
    def publishes(cls, config: Config) -> tuple[str, ...]:
        return ("surprise", "confidence")

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> KalmanState:
        kind: dict[str, Any] = {"dtype": self.state_dtype, "device": device}
        if self.config.covariance is None:
            return KalmanState(torch.zeros(batch, self.rank, **kind), torch.ones(batch, self.rank, **kind))
        heads, size = self.config.covariance.heads, self.config.covariance.rank
        covariance = torch.eye(size, **kind).repeat(batch, heads, 1, 1)
        return KalmanState(torch.zeros(batch, heads, size, **kind), covariance)

    def forward(self, x: Tensor, state: KalmanState | None, ctx: Pass) -> tuple[Tensor, KalmanState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        if self.config.every == 1:
            estimate, state = self._filter(x, state, ctx.mask, ctx, None)
        else:
            estimate, state = self._filter_ticks(x, state, ctx)
        ctx.signals["surprise"], ctx.signals["confidence"] = estimate.surprise, estimate.confidence
        gate = self.gate(x)
        return self.out(silu_gate(estimate.mean, gate)), state

    def _filter(
        self, x: Tensor, state: KalmanState, active: Tensor | None, ctx: Pass, at: Tensor | None
    ) -> tuple[Estimate, KalmanState]:
        """The filter over the tokens of `x` [B, T, D], of indices `at` in the pass, with a tick where `active`."""
        dtype = self.state_dtype
        z, noise = self.observe(x).chunk(2, dim=-1)
        z, noise = z.to(dtype), softplus((noise + self.noise_bias).to(dtype))
        transition = sigmoid(self.transition_logit.to(dtype))
        process = softplus(self.process_logit.to(dtype)) + MIN_NOISE
        if self.config.covariance is not None:
            with torch.autocast(x.device.type, enabled=False):
                return self._filter_heads(z, noise, transition, process, state, active, ctx, at)
        filtered = kalman_filter(z, transition, process, noise, *state, active)
        if ctx.trace is not None:
            before = torch.cat([state.mean[:, None], filtered.mean[:, :-1]], dim=1)
            gain = filtered.variance / noise  # P = r K
            ctx.emit("gain", gain if active is None else gain * active[..., None], at)
            ctx.emit("innovation", z - transition * before, at)
            ctx.emit("variance", filtered.variance, at)
        after = KalmanState(filtered.mean[:, -1].clone(), filtered.variance[:, -1].clone())
        return Estimate(filtered.mean, filtered.surprise, filtered.confidence), after

    def _filter_heads(
        self,
        z: Tensor,
        noise: Tensor,
        transition: Tensor,
        process: Tensor,
        state: KalmanState,
        active: Tensor | None,
        ctx: Pass,
        at: Tensor | None,
    ) -> tuple[Estimate, KalmanState]:
        """The same where the channels of a head have a covariance. With K = P Cᵀ R⁻¹, K C = P J and
        S⁻¹ e = R⁻¹ (z - C x): both signals need no inverse of S."""
        loading = self.loading.to(z.dtype)
        heads = loading.shape[0]
        z, inverse = (each.unflatten(-1, (heads, -1)) for each in (z, (noise + MIN_HEAD_NOISE).reciprocal()))
        pairs = (loading[..., None] * loading[..., None, :]).flatten(2)
        precision = block_linear(inverse, pairs.mT).unflatten(-1, loading.shape[-1:] * 2)
        information = block_linear(inverse * z, loading.mT)
        mean, covariance = matrix_kalman_filter(precision, information, transition, process, *state, active)
        predicted = transition * torch.cat([state.mean[:, None], mean[:, :-1]], dim=1)
        innovation = z - block_linear(predicted, loading)
        estimate = block_linear(mean, loading)
        surprise = (innovation * inverse * (z - estimate)).sum((-1, -2)) / self.rank
        confidence = 1 - (covariance * precision).sum((-1, -2, -3)) / self.rank
        if active is not None:
            surprise, confidence = torch.where(active, surprise, 0.0), torch.where(active, confidence, 1.0)
        if ctx.trace is not None:
            of_channels = block_linear(covariance.flatten(-2), pairs)
            gain = of_channels * inverse
            ctx.emit("gain", (gain if active is None else gain * active[..., None, None]).flatten(2), at)
            ctx.emit("innovation", innovation.flatten(2), at)
            ctx.emit("variance", of_channels.flatten(2), at)
        after = KalmanState(mean[:, -1].clone(), covariance[:, -1].clone())
        return Estimate(estimate.flatten(2), surprise, confidence), after

    def _filter_ticks(self, x: Tensor, state: KalmanState, ctx: Pass) -> tuple[Estimate, KalmanState]:
        """The filter over the columns of `x` where some row's clock ticks; its state is constant in between."""
        ticks = Ticks.of(self.config.every, ctx.positions, ctx.mask, ctx.start)
        surprise = torch.zeros(x.shape[:2], dtype=self.state_dtype, device=x.device)
        confidence = torch.ones_like(surprise)
        means = state.mean[:, None]
        if self.config.covariance is not None:
            means = block_linear(means, self.loading.to(means.dtype)).flatten(2)
        if len(ticks.columns):
            at = ticks.columns.expand(len(x), -1)
            estimate, state = self._filter(x.index_select(1, ticks.columns), state, ticks.due, ctx, at)
            means = torch.cat([means, estimate.mean], 1)
            surprise = surprise.index_copy(1, ticks.columns, estimate.surprise)
            confidence = confidence.index_copy(1, ticks.columns, estimate.confidence)
        return Estimate(ticks.hold(means), surprise, confidence), state

    def flops(self, time: int) -> float:
        measured = 2 * matrix_size(self.observe) + OP_FLOPS * self.rank
        if self.config.covariance is not None:
            heads, channels, size = self.loading.shape
            filtered = HEAD_FLOPS * size**3 + 9 * size**2
            measured += heads * (filtered + channels * size * (2 * size + 7)) - OP_FLOPS * self.rank
        return 2 * (matrix_size(self.gate) + matrix_size(self.out)) + measured / self.config.every


def _softplus_inverse(y: Tensor) -> Tensor:
    return y.expm1().log()

"""A Kalman filter in every channel: a running estimate with its variance, which publishes surprise and confidence."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.momentum import Timescale, log_spaced
from synthe_core.layers.projection import matrix_size, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, softplus
from synthe_core.ops.frames import Ticks
from synthe_core.ops.kalman_filter import Filtered, kalman_filter
from synthe_core.ops.silu_gate import silu_gate

OP_FLOPS = 14  # a channel and measurement, the two signals included
MIN_NOISE = 1e-6  # of the process: without any, the gain tends to 0 and the filter stops to learn


class KalmanState(NamedTuple):
    """The filter's mean and variance [B, R]."""

    mean: Tensor
    variance: Tensor


class Kalman(Learner[KalmanState]):
    """y_t = W_o (μ_t ⊙ silu(W_g x_t)), μ and P from the diagonal Kalman filter of the observations z_t = W_z x_t, whose
    noise is r_t = softplus(W_r x_t + b).

    x [B, T, D], R = rank channels, state μ and P [B, R]. Transition a in (0, 1) and process noise q > 0 are learned,
    one a channel; initially the steady gain (at r = 1) is 1 / timescale, timescales spread evenly in their logarithm. A
    fresh state is μ = 0, P = 1: the first tokens count for much, and gains fall as evidence comes in.

    With `every: K` the filter's clock ticks at positions 0, K, 2K ... only: there it predicts and measures, in between
    its state is constant, and no observation is computed. Positions are absolute, so any split of a sequence has the
    same ticks.

    Publishes two causal signals [B, T] that carry gradient: "surprise", the squared innovation over the variance that
    was predicted for it, mean over channels (1 is as expected); and "confidence", r / (r + P⁻) = 1 - K, mean over
    channels, in (0, 1]: the more certain the prediction is beside the observation, the closer to 1. Tokens not
    measured (between ticks, padding) have gain 0, so surprise 0 and confidence 1.

    Sources: Kalman 1960; Särkkä & García-Fernández 2020 for the parallel form.
    """

    class Config(LearnerConfig):
        type: Literal["kalman"] = "kalman"
        rank: int | None = Field(None, ge=1, description="channels filtered; default the width")
        every: int = Field(1, ge=1, description="measure at every K-th position only")
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
        gain = log_spaced(config.timescales, self.rank).double().reciprocal()
        transition = 1 - gain / 4
        process = gain / (1 - gain) - transition.square() * gain  # M - a² P with M = r K / (1 - K), P = r K, r = 1
        self.observe = project_in(width, 2 * self.rank)
        self.gate = project_in(width, self.rank)
        self.out = project_out(self.rank, width)
        self.transition_logit = nn.Parameter(torch.logit(transition).float())
        self.process_logit = nn.Parameter(_softplus_inverse(process - MIN_NOISE).float())
        self.noise_bias = nn.Parameter(_softplus_inverse(torch.ones(self.rank)))

    @classmethod
    def publishes(cls, config: Config) -> tuple[str, ...]:
        return ("surprise", "confidence")

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> KalmanState:
        shape = (batch, self.rank)
        return KalmanState(
            torch.zeros(shape, dtype=self.state_dtype, device=device),
            torch.ones(shape, dtype=self.state_dtype, device=device),
        )

    def forward(self, x: Tensor, state: KalmanState | None, ctx: Pass) -> tuple[Tensor, KalmanState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        if self.config.every == 1:
            filtered, state = self._filter(x, state, ctx.mask, ctx, None)
        else:
            filtered, state = self._filter_ticks(x, state, ctx)
        ctx.signals["surprise"], ctx.signals["confidence"] = filtered.surprise, filtered.confidence
        gate = self.gate(x)
        return self.out(silu_gate(filtered.mean, gate)), state

    def _filter(
        self, x: Tensor, state: KalmanState, active: Tensor | None, ctx: Pass, at: Tensor | None
    ) -> tuple[Filtered, KalmanState]:
        """The filter over the tokens of `x` [B, T, D], of indices `at` in the pass, with a tick where `active`."""
        dtype = self.state_dtype
        z, noise = self.observe(x).chunk(2, dim=-1)
        z, noise = z.to(dtype), softplus((noise + self.noise_bias).to(dtype))
        transition = sigmoid(self.transition_logit.to(dtype))
        process = softplus(self.process_logit.to(dtype)) + MIN_NOISE
        filtered = kalman_filter(z, transition, process, noise, *state, active)
        if ctx.trace is not None:
            before = torch.cat([state.mean[:, None], filtered.mean[:, :-1]], dim=1)
            gain = filtered.variance / noise  # P = r K
            ctx.emit("gain", gain if active is None else gain * active[..., None], at)
            ctx.emit("innovation", z - transition * before, at)
            ctx.emit("variance", filtered.variance, at)
        return filtered, KalmanState(filtered.mean[:, -1].clone(), filtered.variance[:, -1].clone())

    def _filter_ticks(self, x: Tensor, state: KalmanState, ctx: Pass) -> tuple[Filtered, KalmanState]:
        """The filter over the columns of `x` where some row's clock ticks; its state is constant in between."""
        ticks = Ticks.of(self.config.every, ctx.positions, ctx.mask, ctx.start)
        surprise = torch.zeros(x.shape[:2], dtype=self.state_dtype, device=x.device)
        confidence = torch.ones_like(surprise)
        means, variances = (leaf[:, None] for leaf in state)
        if len(ticks.columns):
            at = ticks.columns.expand(len(x), -1)
            filtered, state = self._filter(x.index_select(1, ticks.columns), state, ticks.due, ctx, at)
            means, variances = torch.cat([means, filtered.mean], 1), torch.cat([variances, filtered.variance], 1)
            surprise = surprise.index_copy(1, ticks.columns, filtered.surprise)
            confidence = confidence.index_copy(1, ticks.columns, filtered.confidence)
        return Filtered(ticks.hold(means), ticks.hold(variances), surprise, confidence), state

    def flops(self, time: int) -> float:
        measured = 2 * matrix_size(self.observe) + OP_FLOPS * self.rank
        return 2 * (matrix_size(self.gate) + matrix_size(self.out)) + measured / self.config.every


def _softplus_inverse(y: Tensor) -> Tensor:
    return y.expm1().log()

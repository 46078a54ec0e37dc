"""Recurrent tiers of increasing period: fast tiers feed slow ones, slow ones condition fast ones."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.momentum import Timescale, log_spaced
from synthe_core.layers.projection import matrix_size, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.frames import Ticks
from synthe_core.ops.gated_average import gated_average
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.silu_gate import silu_gate

EPS = 1e-5
OP_FLOPS = 15  # a channel and tick: seven for the average, five for the norm, three for scale and shift


class TiersState(NamedTuple):
    """Every tier's average [B, N, E]."""

    levels: Tensor


class Tiers(Learner[TiersState]):
    """Tier k ticks at positions 0, τ_k, 2τ_k ..., τ_k = ratio^k, and is constant in between. At a tick, with n_k =
    norm(s_k),

        s_k = a ⊙ s_k' + (1 - a) ⊙ v,   a = σ(A_k z + b_k), v = V_k z,   z = n_{k-1} (tier 0: z = x_t)      fast → slow
        o_k = n_k ⊙ (1 + F_k o_{k+1}) + G_k o_{k+1}   (the slowest: o_k = n_k)                              slow → fast
        y_t = W_o ([o_0 ... o_{N-1}] ⊙ silu(W_g x_t))

    where s_k' is the tier's state before and every tier is read at its last tick. x [B, T, D], N tiers of E = size
    channels, state s [B, N, E]. The bias b_k starts so that tier k averages over timescales 1 / (1 - a) *of its own
    ticks*, spread evenly in their logarithm. Positions are absolute, so any split of a sequence ticks alike; padding
    is a = 1. A tier's recurrence, norm and conditioning are computed at its ticks only: all but the first together
    cost at most 1 / (ratio - 1) of the first.

    The published cell is a GRU whose gates read its own state, which nothing but a loop over time can run. Here gates
    read the input alone, so that every tier is one scan: the minimal GRU. A slow tier reads the fast tier's state at
    the tick, as published. Sources: EGen's Transformer Hierarchical Layers (clocks, fast feeds slow); Feng et al. 2024
    (minimal GRU); Perez et al. 2018 (conditioning by scale and shift).
    """

    class Config(LearnerConfig):
        type: Literal["tiers"] = "tiers"
        tiers: int = Field(4, ge=1, le=64)
        size: int | None = Field(None, ge=1, description="channels of each tier; default half the width")
        ratio: int = Field(2, ge=2, description="each tier ticks this many times as slowly as the one below")
        timescales: tuple[Timescale, Timescale] = Field(
            (2.0, 64.0), description="initial timescales of each tier's averages in its own ticks, shortest and longest"
        )

    emits = schema({"tier_*": Emission("B T E", "memory", "the tier's state at every token", "rms")})

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.size = config.size or max(width // 2, 1)
        self.periods = [config.ratio**k for k in range(config.tiers)]
        if self.periods[-1] > 2**31:
            raise InputError(
                f"tiers: {config.tiers} tiers at ratio {config.ratio} would tick every {self.periods[-1]} tokens",
                "no sequence is that long: use fewer tiers",
            )
        above = config.tiers - 1
        self.feed = nn.ModuleList(project_in(size, 2 * self.size) for size in [width, *[self.size] * above])
        self.condition = nn.ModuleList(project_out(self.size, 2 * self.size) for _ in range(above))
        self.gate = project_in(width, config.tiers * self.size)
        self.out = project_out(config.tiers * self.size, width)
        bias = (log_spaced(config.timescales, self.size) - 1).log()
        self.decay_bias = nn.Parameter(bias.repeat(config.tiers, 1))
        self.norm = nn.Parameter(torch.ones(config.tiers, self.size))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> TiersState:
        return TiersState(torch.zeros(batch, self.config.tiers, self.size, dtype=self.state_dtype, device=device))

    def forward(self, x: Tensor, state: TiersState | None, ctx: Pass) -> tuple[Tensor, TiersState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        ticks = [Ticks.of(period, ctx.positions, ctx.mask, ctx.start) for period in self.periods]
        normed, after = self._feed_slow(x, state, ticks, ctx)
        read = self._condition_fast(normed, ticks, x.dtype)
        return self.out(silu_gate(read, self.gate(x))), after

    def _feed_slow(
        self, x: Tensor, state: TiersState, ticks: list[Ticks], ctx: Pass
    ) -> tuple[list[Tensor], TiersState]:
        """Fast feeds slow: each tier's normed states [B, 1 + n, E], the one before the pass first; and those after."""
        normed: list[Tensor] = []
        after = []
        for k, (tick, before) in enumerate(zip(ticks, state.levels.unbind(1), strict=True)):
            levels, last = before[:, None], before
            if len(tick.columns):
                z = normed[-1].index_select(1, ticks[k - 1].held[tick.columns]).to(x.dtype) if k else x
                decay, value = self.feed[k](z).chunk(2, dim=-1)
                logits = (decay + self.decay_bias[k]).to(self.state_dtype)
                logits = logits.masked_fill(~tick.due[..., None], math.inf)
                levels, last = gated_average(logits, value.to(self.state_dtype), before)
                levels = torch.cat([before[:, None], levels], dim=1)
            if ctx.trace is not None:
                ctx.emit(f"tier_{k}", tick.hold(levels))
            normed.append(rms_norm(levels, self.norm[k].to(self.state_dtype), EPS, self.state_dtype))
            after.append(last)
        return normed, TiersState(torch.stack(after, dim=1))

    def _condition_fast(self, normed: list[Tensor], ticks: list[Ticks], dtype: torch.dtype) -> Tensor:
        """Slow conditions fast. All tiers side by side as each token sees them [B, T, N E], the fastest first."""
        above = normed[-1]
        seen = [ticks[-1].hold(above)]
        for k in reversed(range(len(normed) - 1)):
            # the entry from before the pass is conditioned by that of the tier above
            slow = F.pad(ticks[k + 1].held[ticks[k].columns], (1, 0))
            scale, shift = self.condition[k](above.to(dtype)).index_select(1, slow).chunk(2, dim=-1)
            above = normed[k] * (1 + scale) + shift
            seen.append(ticks[k].hold(above))
        return torch.cat(seen[::-1], dim=-1)

    def flops(self, time: int) -> float:
        """Matrices at the tokens and ticks that they are applied at, and the operations of a tick."""
        ticks = [1 / period for period in self.periods]
        matrix = 4 * self.size * self.size  # two operations an entry, [E, 2E]
        feeding = 4 * self.size * self.width + matrix * sum(ticks[1:])
        conditioning = matrix * sum(tick + 1 / time for tick in ticks[1:])  # and once for the state before the pass
        reading = 2 * (matrix_size(self.gate) + matrix_size(self.out))
        return reading + feeding + conditioning + OP_FLOPS * self.size * sum(ticks)

"""Mamba-2 (SSD): a state space with one decay a head, which makes it gated linear attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.mamba import MambaState, convolve, initial_dt_bias
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import softplus
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.short_conv import MAX_TAPS
from synthe_core.ops.silu_gate import silu_gate


class Mamba2(Learner[MambaState]):
    """S_t = exp(Δ_t A) S_{t-1} + Δ_t B_t u_tᵀ, y_t = W_out norm((S_tᵀ C_t + D u_t) ⊙ silu(z_t)), head by head.

    x [B, T, W] of width W, E channels in H heads of P = head_size, E = expand · W unless `heads` says H. W_in x gives
    z [B, T, E], one logit of Δ a head, and u [B, T, H, P] with B, C [B, T, G, N], N = state_size, which pass a causal
    convolution and SiLU together; H / G heads share each group's B and C. Δ = softplus(dt + b), clamped to
    `time_step_limit`; A = -exp(A_log), initially uniform in [-16, -1]; softplus(b) starts spread evenly in its
    logarithm over [0.001, 0.1].
    The root-mean-square norm is over the E / G channels of a group, or of each of `norm_groups`; it may stand before
    the gate, norm(y) ⊙ silu(z), or be left out. `multipliers` scale what W_in x gives: z, u, B, C and dt. Padding is
    Δ = 0. The state is H N P numbers a row, and (J - 1) (E + 2 G N) of the convolution of J taps.

    Parameters are named and shaped as those of transformers' `Mamba2Mixer`, so its weights load as they are.

    Sources: Dao & Gu 2024, "Transformers are SSMs: generalized models and efficient algorithms through structured state
    space duality"; the multipliers: Zuo et al. 2025, "Falcon-H1".
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["mamba2"] = "mamba2"
        state_size: int = Field(64, ge=1, description="rows of a head's state; the published models have 128")
        head_size: int = Field(64, ge=1, description="channels a head")
        heads: int | None = Field(None, ge=1, description="heads; default as many as `expand` gives")
        expand: int = Field(2, ge=1, description="channels, as a multiple of the width, where `heads` is not given")
        groups: int = Field(1, ge=1, description="groups of heads that share what is written and read with (B and C)")
        conv: int = Field(4, ge=1, le=MAX_TAPS, description="taps of the causal convolution; 1 = the present only")
        conv_bias: bool = Field(True, description="a bias in the convolution")
        bias: bool | Literal["in", "out"] = Field(
            False, description="biases in the projections from and to the width, or in one of them"
        )
        multipliers: tuple[float, float, float, float, float] | None = Field(
            None, description="what the gate, the values, B, C and the logits of Δ are multiplied by; null: nothing"
        )
        time_step_limit: tuple[float, float | None] = Field(
            (0.0, None), description="least and greatest Δ of a token; null = any"
        )
        norm: Literal["after_gate", "before_gate", "none"] = Field(
            "after_gate", description="where the norm of what the heads read stands"
        )
        norm_groups: int | None = Field(
            None, ge=1, description="parts that this norm normalises apart; default as many as groups"
        )
        norm_eps: float = Field(1e-5, gt=0, description="what this norm adds to a mean square")

    emits = schema(
        {
            "delta": Emission("B T H", "gates", "step size: how much of a token is taken in"),
            "decay": Emission("B T H", "gates", "decay of the state before a token's write"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        channels, groups = _channels(config, width), config.groups
        self.heads = channels // config.head_size
        self.channels, self.shared = channels, groups * config.state_size
        mixed = channels + 2 * self.shared
        self.in_proj = project_in(width, channels + mixed + self.heads, config.bias in (True, "in"))
        self.conv1d = nn.Conv1d(mixed, mixed, config.conv, groups=mixed, bias=config.conv_bias)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        if config.norm != "none":
            self.norm = nn.RMSNorm(channels, eps=config.norm_eps)
        self.out_proj = project_out(channels, width, config.bias in (True, "out"))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> MambaState:
        scan = (batch, self.heads, self.config.state_size, self.config.head_size)
        conv = (batch, self.config.conv - 1, self.channels + 2 * self.shared)
        return MambaState(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in (scan, conv)))

    def forward(
        self, x: Tensor, state: MambaState | None, ctx: Pass, rule: Callable[..., Any] = linear_attention
    ) -> tuple[Tensor, MambaState]:
        """`rule` may take the place of the operator of the memory, whose arguments it is given."""
        state = state or self.init_state(x.shape[0], device=x.device)
        dtype, mixed = self.state_dtype, self.channels + 2 * self.shared
        z, u, dt = self._scaled(self.in_proj(x)).split([self.channels, mixed, self.heads], dim=-1)
        u, conv = convolve(self.conv1d, u.to(dtype), state.conv, ctx)
        with torch.autocast(x.device.type, enabled=False):
            u, B, C = u.split([self.channels, self.shared, self.shared], dim=-1)
            u = u.unflatten(-1, (self.heads, -1))
            low, high = self.config.time_step_limit
            delta = softplus(dt.to(dtype) + self.dt_bias.to(dtype)).clamp(low, high)
            if ctx.mask is not None:
                delta = delta * ctx.mask[..., None]
            log_decay = -self.A_log.to(dtype).exp() * delta
            ctx.emit("delta", delta)
            if ctx.trace is not None:
                ctx.emit("decay", log_decay.exp())
            y, scan = rule(self._to_heads(C), self._to_heads(B), u, delta, log_decay, state.scan)
            y = torch.addcmul(y, self.D.to(dtype)[:, None], u)
            y = self._gated(y.flatten(2), z)
        return self.out_proj(y), MambaState(scan, conv)

    def _scaled(self, projected: Tensor) -> Tensor:
        """What in_proj gives, times the multiplier of each part."""
        if self.config.multipliers is None:
            return projected
        sizes = (self.channels, self.channels, self.shared, self.shared, self.heads)
        parts = zip(projected.split(sizes, dim=-1), self.config.multipliers, strict=True)
        return torch.cat([part * scale for part, scale in parts], dim=-1)

    def _to_heads(self, shared: Tensor) -> Tensor:
        """Per-group B or C [B, T, G N] repeated for the heads of each group, [B, T, H, N]."""
        grouped = shared.unflatten(-1, (self.config.groups, 1, -1))
        return grouped.expand(-1, -1, -1, self.heads // self.config.groups, -1).flatten(2, 3)

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        """y [B, T, E] behind the gate z and the norm, as the dtype of z."""
        if self.config.norm == "none":
            return silu_gate(y, z)
        if self.config.norm == "before_gate":
            return silu_gate(self._normed(y, y.dtype), z)
        return self._normed(silu_gate(y, z.to(y.dtype)), z.dtype)

    def _normed(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """y [B, T, E] over the root mean square of each group's channels, weighted, as `dtype`."""
        weight, groups = self.norm.weight.to(y.dtype), self.config.norm_groups or self.config.groups
        parts = zip(y.chunk(groups, -1), weight.chunk(groups), strict=True)
        normed = [rms_norm(part, w, self.config.norm_eps, dtype) for part, w in parts]
        return normed[0] if groups == 1 else torch.cat(normed, -1)

    def flops(self, time: int) -> float:
        """The matrices, and 5 operations a number of state: to decay it, two to write and two to read."""
        return super().flops(time) + 5.0 * self.heads * self.config.state_size * self.config.head_size


def _channels(config: Mamba2.Config, width: int) -> int:
    """The channels of all heads. InputError for sizes that do not fit together."""
    size, groups = config.head_size, config.groups
    channels = config.expand * width if config.heads is None else config.heads * size
    if channels % size:
        raise InputError(
            f"mamba2: {channels} channels ({config.expand} x width {width}) do not split into heads of {size}",
            nearest_divisor(channels, size, "head_size"),
        )
    heads = channels // size
    if heads % groups:
        raise InputError(
            f"mamba2: {heads} heads do not split into {groups} groups", nearest_divisor(heads, groups, "groups")
        )
    if channels % (parts := config.norm_groups or groups):
        raise InputError(
            f"mamba2: {channels} channels do not split into {parts} groups to normalise",
            nearest_divisor(channels, parts, "norm_groups"),
        )
    low, high = config.time_step_limit
    if not 0 <= low < (math.inf if high is None else high):
        raise InputError(
            f"mamba2: time_step_limit must rise from 0 or more, not [{low:g}, {high:g}]", "such as [0.001, 0.1]"
        )
    return channels

"""Mamba (S6): a state space whose step size, input and output depend on the token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import Linear, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import softplus
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.selective_scan import selective_scan
from synthe_core.ops.short_conv import MAX_TAPS, short_conv, with_history
from synthe_core.ops.silu_gate import silu_gate

DT_RANGE = (1e-3, 1e-1)  # initial range of Δ


class MambaState(NamedTuple):
    """scan [B, E, N], the state space's; conv [B, J-1, E], the last inputs of the convolution of J taps."""

    scan: Tensor
    conv: Tensor


class Mamba(Learner[MambaState]):
    """h_t = exp(Δ_t A) ⊙ h_{t-1} + (Δ_t ⊙ u_t) B_tᵀ, y_t = W_out ((h_t C_t + D ⊙ u_t) ⊙ silu(z_t)).

    x [B, T, W] of width W, E = expand · W channels with N = state_size numbers each. W_in x gives u and z [B, T, E];
    u passes a causal convolution and SiLU; W_x u gives B, C [B, T, N] and, through a bottleneck of dt_rank numbers,
    Δ = softplus(W_Δ dt + b) [B, T, E]. A = -exp(A_log), at first -1 ... -N in every channel (S4D-real), and softplus(b)
    is spread evenly in its logarithm over [0.001, 0.1]. Padding is Δ = 0. The state is E (N + J - 1) numbers a row.

    `bc_dt_norm` puts root-mean-square norms on dt, B and C, each over its own numbers.

    Parameters are named and shaped as those of transformers' `MambaMixer`, so its weights load as they are.

    Sources: Gu & Dao 2023, "Mamba: Linear-time sequence modeling with selective state spaces"; the norms: Lieber et al.
    2024 (Jamba, weighted), Zuo et al. 2024 (Falcon Mamba, without weights).
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["mamba"] = "mamba"
        state_size: int = Field(16, ge=1, description="numbers of state in every channel")
        expand: int = Field(2, ge=1, description="channels, as a multiple of the width")
        conv: int = Field(4, ge=1, le=MAX_TAPS, description="taps of the causal convolution; 1 = the present only")
        dt_rank: int | None = Field(None, ge=1, description="numbers that Δ is made from; default width / 16, up")
        conv_bias: bool = Field(True, description="a bias in the convolution")
        bias: bool = Field(False, description="biases in the projections from and to the width")
        bc_dt_norm: bool | Literal["weighted"] = Field(
            False, description="normalise B, C and what Δ is made from; weighted: with a learned scale for each number"
        )
        norm_eps: float = Field(1e-6, gt=0, description="what that norm adds to a mean square")

    emits = schema({"delta": Emission("B T E", "gates", "step size: what of a token is taken in, mean over channels")})

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        channels, size = config.expand * width, config.state_size
        self.channels = channels
        self.rank = config.dt_rank or math.ceil(width / 16)
        self.in_proj = project_in(width, 2 * channels)
        self.conv1d = nn.Conv1d(channels, channels, config.conv, groups=channels, bias=config.conv_bias)
        self.x_proj = project_in(channels, self.rank + 2 * size)
        self.dt_proj = Linear(self.rank, channels)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        self.dt_proj.bias = nn.Parameter(initial_dt_bias(channels))
        if config.bc_dt_norm == "weighted":
            self.dt_layernorm, self.b_layernorm, self.c_layernorm = (
                nn.RMSNorm(numbers, eps=config.norm_eps) for numbers in (self.rank, size, size)
            )
        self.A_log = nn.Parameter(torch.arange(1, size + 1).float().log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = project_out(channels, width)
        if config.bias:
            self.in_proj.bias = nn.Parameter(torch.zeros(2 * channels))
            self.out_proj.bias = nn.Parameter(torch.zeros(width))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> MambaState:
        sizes = (batch, *self.A_log.shape), (batch, self.config.conv - 1, self.channels)
        return MambaState(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in sizes))

    def forward(self, x: Tensor, state: MambaState | None, ctx: Pass) -> tuple[Tensor, MambaState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv = convolve(self.conv1d, u.to(self.state_dtype), state.conv, ctx)
        size = self.config.state_size
        dt, B, C = self._normed(*self.x_proj(u.to(z.dtype)).split([self.rank, size, size], dim=-1))
        logits = self.dt_proj.project(dt, bias=False)
        with torch.autocast(x.device.type, enabled=False):
            delta = softplus(logits.to(u.dtype) + self.dt_proj.bias.to(u.dtype))
            if ctx.mask is not None:
                delta = delta * ctx.mask[..., None]
            ctx.emit("delta", delta)
            A, D = -self.A_log.to(u.dtype).exp(), self.D.to(u.dtype)
            y, scan = selective_scan(u, delta, A, B.to(u.dtype), C.to(u.dtype), D, state.scan)
            y = silu_gate(y, z)
        return self.out_proj(y), MambaState(scan, conv)

    def _normed(self, *parts: Tensor) -> Sequence[Tensor]:
        """dt, B and C behind the norms that they have."""
        if not self.config.bc_dt_norm:
            return parts
        wide = self.state_dtype
        weights = [torch.ones(part.shape[-1], dtype=wide, device=part.device) for part in parts]
        if self.config.bc_dt_norm == "weighted":
            weights = [norm.weight.to(wide) for norm in (self.dt_layernorm, self.b_layernorm, self.c_layernorm)]
        pairs = zip(parts, weights, strict=True)
        return [rms_norm(part.to(wide), weight, self.config.norm_eps, part.dtype) for part, weight in pairs]

    def flops(self, time: int) -> float:
        """The matrices, and per number of state 7 operations: 2 for exp(Δ A), 1 to decay, 2 to write, 2 to read. The
        count of the matrices has 2 of the 7 already, as A_log is one."""
        return super().flops(time) + 5.0 * self.A_log.numel()


def initial_dt_bias(count: int) -> Tensor:
    """Biases b whose softplus(b) are spread over DT_RANGE, at random and evenly in their logarithm."""
    step = torch.empty(count).uniform_(math.log(DT_RANGE[0]), math.log(DT_RANGE[1])).exp()
    return step + torch.log(-torch.expm1(-step))


def convolve(conv1d: nn.Conv1d, u: Tensor, before: Tensor, ctx: Pass, silu: bool = True) -> tuple[Tensor, Tensor]:
    """The causal convolution of u [B, T, E] after the inputs `before` [B, J-1, E], its `silu` unless that is false, and
    the next call's inputs.

    `conv1d` holds the weights; torch's own convolution needs time last, and is slower.
    """
    weight = conv1d.weight[:, 0].to(u.dtype)
    bias = None if conv1d.bias is None else conv1d.bias.to(u.dtype)
    taps = weight.shape[1]
    with torch.autocast(u.device.type, enabled=False):
        y, last = short_conv(u, weight, before, silu, bias)
    return y, last if ctx.lengths is None else ctx.last(with_history(u, before, taps), taps - 1)

"""Mamba-3: a state space with trapezoidal steps, turning (complex) states and several inputs and outputs a head."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.mamba import initial_dt_bias
from synthe_core.layers.projection import matrix_size, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, silu, softplus
from synthe_core.ops.mamba3_scan import mamba3_scan
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.silu_gate import silu_gate

LEAST_RATE = 1e-4  # of A, which keeps every memory finite


class Mamba3State(NamedTuple):
    """memory [B, H, N, P]; angle [B, H, A], in [-π, π); key [B, H, R, N] and value [B, H, P] of the last token."""

    memory: Tensor
    angle: Tensor
    key: Tensor
    value: Tensor


class Mamba3(Learner[Mamba3State]):
    """S_t = α_t (S_{t-1} + (1 - λ_t) Δ_t Σ_r k_{t-1,r} v_{t-1,r}ᵀ) + λ_t Δ_t Σ_r k_{t,r} v_{t,r}ᵀ,
    y_t = W_out Σ_r m°_r ⊙ (S_tᵀ q_{t,r} + D v_{t,r}) ⊙ silu(mᶻ_r ⊙ z_t), head by head.

    x [B, T, W] of width W, E = expand · W channels in H heads of P = head_size. W_in x gives z and u [B, T, E], B and C
    [B, T, R, G, N], N = state_size, R = rank, the logits of Δ, A and λ per head, and angles θ [B, T, A]. Δ =
    softplus(dt + b), A = -softplus(a) (or `heavy_tail`: 1 + a from 0 up, 1 / (1 - a) below), α = exp(Δ A): decays
    depend on the token twice. λ = σ(.) weighs the present against the last token in the integral over a step: λ = 1 is
    Mamba-2's rule, 1/2 the trapezoidal one, which makes a short convolution needless.

    k = turn(norm(B) + bias) and q = turn(norm(C) + bias), weights and biases per head; turn rotates the pairs of
    channels (2i, 2i + 1), i < A, by φ_t = φ_{t-1} + π tanh(θ_t) Δ_t, A = `rope_fraction` N / 2: a state of complex
    numbers that turn as they decay. H / G heads share each group's B and C.

    With `rank` R > 1 (MIMO) v_r = mˣ_r ⊙ u, and the R outputs are gated apart and summed; with 1, v = u and m = 1.
    `norm` puts a root-mean-square norm per head before the gate. Padding is Δ = 0. The state is H(NP + RN + P + A)
    numbers a row.

    Parameters are named and shaped as those of state-spaces' `Mamba3`; its MIMO kernels pair channels i and i + N/2.

    Source: Lahoti et al. 2026, "Mamba-3: improved sequence modeling using state space principles".
    """

    class Config(LearnerConfig):
        type: Literal["mamba3"] = "mamba3"
        state_size: int = Field(64, ge=2, description="rows of a head's state; the published models have 128")
        head_size: int = Field(64, ge=1, description="channels a head")
        expand: int = Field(2, ge=1, description="channels, as a multiple of the width")
        groups: int = Field(1, ge=1, description="groups of heads that share what is written and read with (B and C)")
        rank: int = Field(1, ge=1, le=16, description="writes and reads of a head at a token; published: 1 and 4")
        rope_fraction: float = Field(
            0.5, gt=0, le=1, description="share of the state's rows that turn; published: 1/2, 1"
        )
        rate: Literal["softplus", "heavy_tail"] = Field("softplus", description="what makes A of its logits")
        norm: bool = Field(False, description="a norm of every head's outputs before the gate")
        norm_eps: float = Field(1e-5, gt=0, description="what the norms add to a mean square")

    emits = schema(
        {
            "delta": Emission("B T H", "gates", "step size: how much of a token is taken in"),
            "decay": Emission("B T H", "gates", "decay of the state before a token's write"),
            "trapezoid": Emission("B T H", "gates", "weight of the present token, against the last, in its step"),
            "turn": Emission("B T H E", "gates", "angle by which the state turns at the token, mean over pairs"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.channels = config.expand * width
        self.heads = _heads(config, self.channels)
        self.angles = max(int(config.state_size * config.rope_fraction) // 2, 1)
        size, rank, shared = config.state_size, config.rank, config.rank * config.groups * config.state_size
        self.features = [*2 * [self.channels], *2 * [shared], *3 * [self.heads], self.angles]
        self.in_proj = project_in(width, sum(self.features))
        self.dt_bias = nn.Parameter(initial_dt_bias(self.heads))
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(self.heads, rank, size)) for _ in range(2))
        self.B_norm, self.C_norm = (nn.RMSNorm(size, eps=config.norm_eps) for _ in range(2))
        if rank > 1:
            shape = (self.heads, rank, config.head_size)
            scales = (1 / rank, 1.0, 1 / rank)
            self.mimo_x, self.mimo_z, self.mimo_o = (nn.Parameter(torch.full(shape, scale)) for scale in scales)
        self.D = nn.Parameter(torch.ones(self.heads))
        if config.norm:
            self.norm = nn.RMSNorm(self.channels, eps=config.norm_eps)
        self.out_proj = project_out(self.channels, width)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> Mamba3State:
        size, head = self.config.state_size, self.config.head_size
        sizes = ((size, head), (self.angles,), (self.config.rank, size), (head,))
        zeros = (torch.zeros(batch, self.heads, *each, dtype=self.state_dtype, device=device) for each in sizes)
        return Mamba3State(*zeros)

    def forward(self, x: Tensor, state: Mamba3State | None, ctx: Pass) -> tuple[Tensor, Mamba3State]:
        state = state or self.init_state(x.shape[0], device=x.device)
        dtype = self.state_dtype
        z, u, B, C, *logits = self.in_proj(x).split(self.features, dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            dt, rate, mix, theta = (part.to(dtype) for part in logits)
            delta, log_decay, trapezoid = self._gates(dt, rate, mix, ctx)
            turn = torch.pi * (2 * sigmoid(2 * theta) - 1)[:, :, None] * delta[..., None]
            angle = _summed(turn, state.angle)
            if ctx.trace is not None:
                ctx.emit("turn", turn)
            q = self._turned(self._to_heads(C.to(dtype), self.C_norm, self.C_bias), angle)
            k = self._turned(self._to_heads(B.to(dtype), self.B_norm, self.B_bias), angle)
            u = u.to(dtype).unflatten(-1, (self.heads, -1))
            before = self._values(state.value)
            o, memory = mamba3_scan(
                *(q, k, self._values(u), delta, trapezoid, log_decay, state.key, before, state.memory)
            )
            y = self._gated(torch.addcmul(o, self.D.to(dtype)[:, None, None], self._values(u)), z)
            keys, values = torch.cat([state.key[:, None], k], 1), torch.cat([state.value[:, None], u], 1)
        last = Mamba3State(memory, angle[:, -1], ctx.last(keys, 1)[:, 0], ctx.last(values, 1)[:, 0])
        return self.out_proj(y), last

    def _gates(self, dt: Tensor, rate: Tensor, trapezoid: Tensor, ctx: Pass) -> tuple[Tensor, Tensor, Tensor]:
        """Δ, log α and λ [B, T, H]; at padding Δ and log α are 0, which leaves the state unchanged."""
        delta = softplus(dt + self.dt_bias.to(dt.dtype))
        if ctx.mask is not None:
            delta = delta * ctx.mask[..., None]
        if self.config.rate == "softplus":
            rate = softplus(rate)
        else:
            rate = rate.clamp_min(0) + (1 - rate.clamp_max(0)).reciprocal()
        log_decay, trapezoid = -rate.clamp_min(LEAST_RATE) * delta, sigmoid(trapezoid)
        if ctx.trace is not None:
            ctx.emit("delta", delta)
            ctx.emit("decay", log_decay.exp())
            ctx.emit("trapezoid", trapezoid)
        return delta, log_decay, trapezoid

    def _to_heads(self, shared: Tensor, norm: nn.RMSNorm, bias: Tensor) -> Tensor:
        """B or C [B, T, R G N], normalised, for the heads of each group and with their biases: [B, T, H, R, N]."""
        rank, groups = self.config.rank, self.config.groups
        normed = rms_norm(
            shared.unflatten(-1, (rank * groups, -1)), norm.weight.to(shared.dtype), norm.eps or 0.0, shared.dtype
        )
        by_group = normed.unflatten(2, (rank, groups)).transpose(2, 3)[:, :, :, None]  # [B, T, G, 1, R, N]
        return (by_group + bias.to(shared.dtype).unflatten(0, (groups, -1))).flatten(2, 3)

    def _turned(self, x: Tensor, angle: Tensor) -> Tensor:
        """x [B, T, H, R, N] whose pairs are turned by `angle` [B, T, H, A]."""
        turning, rest = x.split([2 * self.angles, x.shape[-1] - 2 * self.angles], dim=-1)
        if x.shape[-1] % 2:  # complex numbers lie at even places
            turning = turning.contiguous()
        by = torch.complex(angle.cos(), angle.sin())[..., None, :]
        turned = torch.view_as_real(torch.view_as_complex(turning.unflatten(-1, (-1, 2))) * by)
        return torch.cat([turned.flatten(-2), rest], -1)

    def _values(self, u: Tensor) -> Tensor:
        """v [..., H, R, P] of u [..., H, P]."""
        return u[..., None, :] if self.config.rank == 1 else u[..., None, :] * self.mimo_x.to(u.dtype)

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        """y [B, T, H, R, P] behind the norm and the gate z [B, T, E], summed over R: [B, T, E]."""
        if self.config.norm:
            weight = self.norm.weight.to(y.dtype).unflatten(0, (self.heads, 1, -1))
            ones = weight.new_ones(weight.shape[-1])
            y = weight * rms_norm(y, ones, self.config.norm_eps, y.dtype)
        if self.config.rank == 1:
            return silu_gate(y.flatten(2), z)
        gate = silu(z.to(y.dtype).unflatten(-1, (self.heads, 1, -1)) * self.mimo_z.to(y.dtype))
        return (y * gate * self.mimo_o.to(y.dtype)).sum(3).flatten(2).to(z.dtype)

    @property
    def alignment(self) -> int | None:
        return None  # the first token of a pass reads the memory, others what the operator reads

    def flops(self, time: int) -> float:
        """The matrices, and 2 + 6R operations a number of state: to decay it, 4R + 1 to write the last token and this
        one, and 2R to read."""
        state = self.heads * self.config.state_size * self.config.head_size
        matrices = matrix_size(self.in_proj) + matrix_size(self.out_proj)
        return 2.0 * matrices + (2.0 + 6.0 * self.config.rank) * state


def _heads(config: Mamba3.Config, channels: int) -> int:
    """The number of heads. InputError for sizes that do not fit together."""
    if channels % config.head_size:
        raise InputError(
            f"mamba3: {channels} channels do not split into heads of {config.head_size}",
            nearest_divisor(channels, config.head_size, "head_size"),
        )
    heads = channels // config.head_size
    if heads % config.groups:
        raise InputError(
            f"mamba3: {heads} heads do not split into {config.groups} groups",
            nearest_divisor(heads, config.groups, "groups"),
        )
    return heads


def _summed(turn: Tensor, angle: Tensor) -> Tensor:
    """φ [B, T, H, A] of the turns of every token after `angle` [B, H, A], brought into [-π, π): in float64, which long
    sums need."""
    wide = turn.dtype if turn.device.type == "mps" else torch.float64  # mps has no float64
    total = angle[:, None].to(wide) + turn.to(wide).cumsum(1)
    return (torch.remainder(total + torch.pi, 2 * torch.pi) - torch.pi).to(turn.dtype)

"""Kimi Delta Attention: the delta rule with a decay for every key channel."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.mamba import convolve, initial_dt_bias
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, silu, softplus
from synthe_core.ops.kda import kda
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.short_conv import MAX_TAPS

EPS = 1e-5


class KDAState(NamedTuple):
    """memory [B, G, K, V]; conv [B, J-1, 2HK + GV], the last inputs of the convolution of J taps (0 rows without)."""

    memory: Tensor
    conv: Tensor


class KDA(Learner[KDAState]):
    """S_t = (I - β_t k_t k_tᵀ) Diag(α_t) S_{t-1} + β_t k_t v_tᵀ, o_t = S_tᵀ q_t, y_t = W_out (norm(o_t) ⊙ σ(g_t)).

    x [B, T, D]. One projection of x gives q, k [B, T, H, K], v [B, T, G, V], β per value head, and two vectors of
    `rank` numbers, from which second maps make the decays' logits f [B, T, G, K] and the gate g [B, T, G, V]. Where
    there are more value heads than heads, G / H of them share each q and k. q, k and v pass a causal convolution of
    `conv` taps and SiLU; q and k are then brought to length 1 (the norm per head after reading makes any further scale
    of q redundant). α_t = exp(-A softplus(f_t + b)), A learned per value head and b per channel, initially A in [1, 16]
    and softplus(b) in [0.001, 0.1] as in Mamba-2; with a floor ℓ < 0 it is exp(ℓ σ(A (f_t + b))). The memory is GKV
    numbers a row.

    Sources: Kimi Team 2025 (Kimi Linear); Grazzi et al. 2025 (β up to 2); value heads and the floor as in fla.
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["kda"] = "kda"
        heads: int = Field(8, ge=1)
        key_size: int | None = Field(None, ge=1, description="size of a head's keys; default width / heads")
        value_size: int | None = Field(None, ge=1, description="size of a head's values; default width / heads")
        value_heads: int | None = Field(None, ge=1, description="heads of values; default as many as heads")
        conv: int = Field(4, ge=0, le=MAX_TAPS, description="taps of the causal convolution; 0 = none")
        conv_bias: bool = Field(False, description="a bias in the convolution")
        rank: int | None = Field(
            None, ge=1, description="of the maps that make decays and gate; default the size of a head's values"
        )
        beta_range: tuple[float, float] = Field((0.0, 1.0), description="of the write strength; up to [0, 2]")
        decay_floor: float | None = Field(
            None, lt=0, description="least logarithm of a decay, which is then a sigmoid of its logit; null = any"
        )
        gate_bias: bool = Field(True, description="a bias in the output gate")
        norm_eps: float = Field(EPS, gt=0, description="what the norm of a head's outputs adds to a mean square")
        key_norm_eps: float = Field(EPS, gt=0, description="added to the squared length of queries and keys")

    emits = schema(
        {
            "beta": Emission("B T H", "gates", "write strength: how much of the value stored at the key is replaced"),
            "decay": Emission("B T H E", "gates", "decay of the memory before a token's write, mean over channels"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        check_head_sizes(config, width)
        groups = self.groups = config.value_heads or heads
        if groups % heads:
            raise InputError(
                f"kda: value_heads {groups} is not a multiple of heads {heads}",
                nearest_divisor(groups, heads),
            )
        low, high = config.beta_range
        if not 0 <= low < high <= 2:
            raise InputError(
                f"kda: beta_range must rise within [0, 2], not [{low:g}, {high:g}]",
                "beyond 2 the memory grows without bound",
            )
        self.key = config.key_size or width // heads
        self.value = config.value_size or width // heads
        values, rank = groups * self.value, config.rank or self.value
        mixed = 2 * heads * self.key + values
        self.features = [mixed, rank, rank, groups]
        self.project = project_in(width, sum(self.features))
        self.conv1d = None
        if config.conv:
            self.conv1d = nn.Conv1d(mixed, mixed, config.conv, groups=mixed, bias=config.conv_bias)
        self.decay = project_in(rank, groups * self.key)
        self.gate = project_in(rank, values)
        self.out = project_out(values, width)
        self.norm = nn.Parameter(torch.ones(self.value))
        self.gate_bias = nn.Parameter(torch.zeros(values)) if config.gate_bias else None
        self.A_log = nn.Parameter(torch.empty(groups).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(initial_dt_bias(groups * self.key))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> KDAState:
        memory = (batch, self.groups, self.key, self.value)
        conv = (batch, max(self.config.conv, 1) - 1, self.features[0])
        return KDAState(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in (memory, conv)))

    def forward(self, x: Tensor, state: KDAState | None, ctx: Pass) -> tuple[Tensor, KDAState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        dtype = self.state_dtype
        mixed, decay, gate, beta = self.project(x).split(self.features, dim=-1)
        decay, gate = self.decay(decay), self.gate(gate)
        if self.conv1d is None:
            mixed, conv = silu(mixed.to(dtype)), state.conv
        else:
            mixed, conv = convolve(self.conv1d, mixed.to(dtype), state.conv, ctx)
        with torch.autocast(x.device.type, enabled=False):
            qk, v = mixed.split([2 * self.config.heads * self.key, self.groups * self.value], dim=-1)
            qk = l2_norm(qk.unflatten(-1, (2, self.config.heads, self.key)), self.config.key_norm_eps)
            if self.groups > self.config.heads:
                qk = qk.repeat_interleave(self.groups // self.config.heads, dim=3)
            q, k = qk.unbind(2)
            v = v.unflatten(-1, (self.groups, self.value))
            write, log_decay = self._gates(beta.to(dtype), decay.to(dtype), ctx)
            o, memory = kda(q, k, v, write, log_decay, state.memory)
            y = rms_norm(o, self.norm, self.config.norm_eps, dtype).flatten(2)
            wide = gate.to(dtype) if self.gate_bias is None else gate.to(dtype) + self.gate_bias
            y = (y * sigmoid(wide)).to(gate.dtype)
        return self.out(y), KDAState(memory, conv)

    def _gates(self, beta: Tensor, decay: Tensor, ctx: Pass) -> tuple[Tensor, Tensor]:
        """β [B, T, G] and log α [B, T, G, K]; at padding they are 0, which leaves the memory unchanged."""
        low, high = self.config.beta_range
        beta = low + (high - low) * sigmoid(beta)
        logits, rates = (decay + self.dt_bias).unflatten(-1, (-1, self.key)), self.A_log.exp()[:, None]
        if self.config.decay_floor is None:
            log_decay = -rates * softplus(logits)
        else:
            log_decay = self.config.decay_floor * sigmoid(rates * logits)
        if ctx.mask is not None:
            beta = beta * ctx.mask[..., None]
            log_decay = log_decay * ctx.mask[..., None, None]
        ctx.emit("beta", beta)
        if ctx.trace is not None:
            ctx.emit("decay", log_decay.exp())
        return beta, log_decay

    def flops(self, time: int) -> float:
        """The matrices, and per head KV multiplications to decay, 2KV operations to recall, to write and to read."""
        return super().flops(time) + 7.0 * self.groups * self.key * self.value


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x / (‖x‖² + eps)^(1/2) over the last axis, of K numbers: a root-mean-square norm with every weight K^-1/2."""
    size = x.shape[-1]
    return rms_norm(x, x.new_full((size,), size**-0.5), eps / size, x.dtype)

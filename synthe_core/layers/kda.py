"""Kimi Delta Attention: the delta rule with a decay for every key channel."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.mamba import convolve, initial_dt_bias
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, softplus
from synthe_core.ops.kda import kda
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.short_conv import MAX_TAPS

EPS = 1e-5


class KDAState(NamedTuple):
    """memory [B, H, K, V]; conv [B, J-1, 2HK + HV], the last inputs of the convolution of J taps."""

    memory: Tensor
    conv: Tensor


class KDA(Learner[KDAState]):
    """S_t = (I - β_t k_t k_tᵀ) Diag(α_t) S_{t-1} + β_t k_t v_tᵀ, o_t = S_tᵀ q_t, y_t = W_out (norm(o_t) ⊙ σ(g_t)).

    x [B, T, D]. One projection of x gives q, k [B, T, H, K], v [B, T, H, V], β per head, and two vectors of `rank`
    numbers, from which second maps make the decays' logits f [B, T, H, K] and the gate g [B, T, H, V]. q, k and v pass
    a causal convolution of `conv` taps and SiLU; q and k are then brought to length 1 (the norm per head after reading
    makes any further scale of q redundant). α_t = exp(-A softplus(f_t + b)), A learned per head and b per channel,
    initially A in [1, 16] and softplus(b) in [0.001, 0.1] as in Mamba-2. The memory is HKV numbers a row.

    Source: Kimi Team 2025 (Kimi Linear).
    """

    class Config(LearnerConfig):
        type: Literal["kda"] = "kda"
        heads: int = Field(8, ge=1)
        key_size: int | None = Field(None, ge=1, description="size of a head's keys; default width / heads")
        value_size: int | None = Field(None, ge=1, description="size of a head's values; default width / heads")
        conv: int = Field(4, ge=1, le=MAX_TAPS, description="taps of the causal convolution; 1 = the present only")
        rank: int | None = Field(
            None, ge=1, description="of the maps that make decays and gate; default the size of a head's values"
        )

    emits = schema(
        {
            "beta": Emission("B T H", "gates", "write strength: how much of the value stored at the key is replaced"),
            "decay": Emission("B T H E", "gates", "decay of the memory before a token's write, mean over channels"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        if width % heads and None in (config.key_size, config.value_size):
            raise InputError(f"kda: width {width} is not divisible by heads {heads}", nearest_divisor(width, heads))
        self.key = config.key_size or width // heads
        self.value = config.value_size or width // heads
        keys, values, rank = heads * self.key, heads * self.value, config.rank or self.value
        mixed = 2 * keys + values
        self.features = [mixed, rank, rank, heads]
        self.project = project_in(width, sum(self.features))
        self.conv1d = nn.Conv1d(mixed, mixed, config.conv, groups=mixed, bias=False)
        self.decay = project_in(rank, keys)
        self.gate = project_in(rank, values)
        self.out = project_out(values, width)
        self.norm = nn.Parameter(torch.ones(self.value))
        self.gate_bias = nn.Parameter(torch.zeros(values))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(initial_dt_bias(keys))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> KDAState:
        memory = (batch, self.config.heads, self.key, self.value)
        conv = (batch, self.config.conv - 1, self.features[0])
        return KDAState(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in (memory, conv)))

    def forward(self, x: Tensor, state: KDAState | None, ctx: Pass) -> tuple[Tensor, KDAState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        dtype = self.state_dtype
        mixed, decay, gate, beta = self.project(x).split(self.features, dim=-1)
        decay, gate = self.decay(decay), self.gate(gate)
        mixed, conv = convolve(self.conv1d, mixed.to(dtype), state.conv, ctx)
        with torch.autocast(x.device.type, enabled=False):
            qk, v = mixed.split([2 * self.config.heads * self.key, self.config.heads * self.value], dim=-1)
            qk = qk.unflatten(-1, (2, self.config.heads, self.key))
            q, k = l2_norm(qk, EPS).unbind(2)
            v = v.unflatten(-1, (self.config.heads, self.value))
            write, log_decay = self._gates(beta.to(dtype), decay.to(dtype), ctx)
            o, memory = kda(q, k, v, write, log_decay, state.memory)
            y = rms_norm(o, self.norm, EPS, dtype).flatten(2)
            y = (y * sigmoid(gate.to(dtype) + self.gate_bias)).to(gate.dtype)
        return self.out(y), KDAState(memory, conv)

    def _gates(self, beta: Tensor, decay: Tensor, ctx: Pass) -> tuple[Tensor, Tensor]:
        """β [B, T, H] and log α [B, T, H, K]; at padding they are 0, which leaves the memory unchanged."""
        beta = sigmoid(beta)
        steps = softplus(decay + self.dt_bias).unflatten(-1, (-1, self.key))
        log_decay = -self.A_log.exp()[:, None] * steps
        if ctx.mask is not None:
            beta = beta * ctx.mask[..., None]
            log_decay = log_decay * ctx.mask[..., None, None]
        ctx.emit("beta", beta)
        if ctx.trace is not None:
            ctx.emit("decay", log_decay.exp())
        return beta, log_decay

    def flops(self, time: int) -> float:
        """The matrices, and per head KV multiplications to decay, 2KV operations to recall, to write and to read."""
        return super().flops(time) + 7.0 * self.config.heads * self.key * self.value


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """x / (‖x‖² + eps)^(1/2) over the last axis, of K numbers: a root-mean-square norm with every weight K^-1/2."""
    size = x.shape[-1]
    return rms_norm(x, x.new_full((size,), size**-0.5), eps / size, x.dtype)

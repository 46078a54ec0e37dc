"""Mesa: a linear memory that is the least-squares solution of everything it was shown, at every token."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.kda import l2_norm
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.mamba import convolve
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, softplus
from synthe_core.ops.mesa import mesa
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.short_conv import MAX_TAPS
from synthe_core.ops.silu_gate import silu_gate

EPS = 1e-5


class MesaState(NamedTuple):
    """keys [B, H, K, K]: A; values [B, H, K, V]: C; conv [B, J-1, 2HK], the last inputs of the convolution of J taps (0
    rows without)."""

    keys: Tensor
    values: Tensor
    conv: Tensor


class Mesa(Learner[MesaState]):
    """A_t = α_t A_{t-1} + β_t k_t k_tᵀ, C_t = α_t C_{t-1} + β_t k_t v_tᵀ, o_t = C_tᵀ (A_t + Diag(λ))⁻¹ q_t and
    y_t = W_out norm(o_t), head by head.

    x [B, T, D]. One projection of x gives q, k [B, T, H, K], v [B, T, H, V], and per head the logits of β = σ(. + b)
    and α = σ(. + a). q and k pass a causal convolution of `conv` taps and SiLU, and are then brought to length 1. λ =
    `ridge_min` + softplus(.) of every key channel, initially 1, keeps the system solvable. norm is root-mean-square per
    head; with `gate` its outputs are multiplied by silu(W_g x). The state is HK(K + V) numbers a row.

    Many tokens are solved together by at most `steps` conjugate gradients, and up to 16 directly: the two agree where
    the steps suffice, which λ and the decays make likely (K steps always do, but for rounding).

    Source: von Oswald et al. 2025, "MesaNet"; the layer as in fla.
    """

    class Config(LearnerConfig):
        type: Literal["mesa"] = "mesa"
        heads: int = Field(8, ge=1)
        key_size: int | None = Field(None, ge=1, description="size of a head's keys; default width / heads")
        value_size: int | None = Field(None, ge=1, description="size of a head's values; default width / heads")
        conv: int = Field(4, ge=0, le=MAX_TAPS, description="taps of the causal convolution of q and k; 0 = none")
        conv_bias: bool = Field(False, description="a bias in the convolution")
        steps: int = Field(30, ge=1, description="of conjugate gradients, at most")
        ridge_min: float = Field(0.25, gt=0, lt=1, description="the least λ")
        gate: bool = Field(False, description="an output gate per channel")
        norm_eps: float = Field(EPS, gt=0, description="what the norm of a head's outputs adds to a mean square")
        key_norm_eps: float = Field(EPS, gt=0, description="added to the squared length of queries and keys")

    emits = schema(
        {
            "beta": Emission("B T H", "gates", "weight of the token's write in the regression"),
            "decay": Emission("B T H", "gates", "decay of the earlier writes' weights"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        check_head_sizes(config, width)
        self.key = config.key_size or width // heads
        self.value = config.value_size or width // heads
        mixed, values = 2 * heads * self.key, heads * self.value
        self.features = [mixed, values, heads, heads, values if config.gate else 0]
        self.project = project_in(width, sum(self.features))
        self.conv1d = None
        if config.conv:
            self.conv1d = nn.Conv1d(mixed, mixed, config.conv, groups=mixed, bias=config.conv_bias)
        self.out = project_out(values, width)
        self.norm = nn.Parameter(torch.ones(self.value))
        self.beta_bias = nn.Parameter(torch.zeros(heads))
        self.decay_bias = nn.Parameter(torch.linspace(1.0, 5.0, heads))  # 4 to 150 tokens
        self.ridge = nn.Parameter(torch.full((heads * self.key,), 1 - config.ridge_min).expm1().log())

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> MesaState:
        keys, values = ((batch, self.config.heads, self.key, size) for size in (self.key, self.value))
        conv = (batch, max(self.config.conv, 1) - 1, self.features[0])
        return MesaState(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in (keys, values, conv)))

    def forward(self, x: Tensor, state: MesaState | None, ctx: Pass) -> tuple[Tensor, MesaState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        dtype, heads = self.state_dtype, self.config.heads
        qk, v, beta, decay, gate = self.project(x).split(self.features, dim=-1)
        qk, conv = qk.to(dtype), state.conv
        if self.conv1d is not None:
            qk, conv = convolve(self.conv1d, qk, conv, ctx)
        with torch.autocast(x.device.type, enabled=False):
            q, k = l2_norm(qk.unflatten(-1, (2, heads, self.key)), self.config.key_norm_eps).unbind(2)
            v = v.to(dtype).unflatten(-1, (heads, self.value))
            beta, log_decay = self._gates(beta.to(dtype), decay.to(dtype), ctx)
            ridge = self.config.ridge_min + softplus(self.ridge.to(dtype)).unflatten(0, (heads, -1))
            o, keys, values = mesa(q, k, v, beta, log_decay, ridge, self.config.steps, state.keys, state.values)
            y = rms_norm(o, self.norm, self.config.norm_eps, dtype).flatten(2)
            y = silu_gate(y, gate) if self.config.gate else y.to(gate.dtype)
        return self.out(y), MesaState(keys, values, conv)

    def _gates(self, beta: Tensor, decay: Tensor, ctx: Pass) -> tuple[Tensor, Tensor]:
        """β and log α [B, T, H]; at padding they are 0, which leaves the state unchanged."""
        beta = sigmoid(beta + self.beta_bias)
        log_decay = F.logsigmoid(decay + self.decay_bias)
        if ctx.mask is not None:
            beta, log_decay = beta * ctx.mask[..., None], log_decay * ctx.mask[..., None]
        if ctx.trace is not None:
            ctx.emit("beta", beta)
            ctx.emit("decay", log_decay.exp())
        return beta, log_decay

    @property
    def alignment(self) -> int | None:
        return None  # few tokens are solved directly and many by conjugate gradients

    def flops(self, time: int) -> float:
        """The matrices; per head 3K(K + V) operations to decay and write, 2K³/3 to solve and 2KV to read."""
        key, value = self.key, self.value
        return super().flops(time) + self.config.heads * (3.0 * key * (key + value) + 2 / 3 * key**3 + 2 * key * value)

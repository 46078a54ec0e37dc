"""RWKV-7's time mixing: a memory with a decay, a removal and a learning rate per channel, all read from the input."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.kda import l2_norm
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import Linear
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.generalized_delta_rule import generalized_delta_rule
from synthe_core.ops.token_shift import token_shift

FASTEST = math.exp(-0.5)  # no channel's decay is stronger than exp(-exp(-1/2)) = 0.545 a token
VALUES = "rwkv7.values"  # of the layer that shares its own
DEPTH = 0.5  # initial values that RWKV-7 varies with depth are those of the middle layer


class RWKV7State(NamedTuple):
    """memory [B, H, K, K]; last [B, 1, D], the input before this pass, which the token shift mixes in."""

    memory: Tensor
    last: Tensor


class RWKV7(Learner[RWKV7State]):
    """S_t = Diag(w_t) S_{t-1} - (a_t ⊙ κ_t) (κ_tᵀ S_{t-1}) + k̃_t v_tᵀ, o_t = S_tᵀ r_t,
    y_t = W_o ((norm(o_t) + (r_t · (ρ ⊙ k̃_t)) v_t) ⊙ g_t).

    x [B, T, D], heads of K = `head_size` channels. For each of six purposes c, x^c_t = x_t + μ_c ⊙ (x_{t-1} - x_t), a
    learned mix with the token before. Receptance, key and value are r = W_r x^r, k = W_k x^k, v = W_v x^v; then

        w = exp(-e^(-1/2) σ(w_0 + tanh(x^w W_1) W_2))   the decay of each key channel, in (0.545, 1)
        a = σ(a_0 + x^a A_1 A_2)                        the in-context learning rate of each channel
        g = σ(x^g G_1) G_2                              the output gate
        κ = normalised (k ⊙ ξ),   k̃ = k ⊙ (1 + (a - 1) ⊙ α)    the keys at which is removed, and written

    with ξ, α, ρ learned. norm is a layer norm per head. Ranks of the low-rank maps follow the paper's rule for the
    width. The memory is D K numbers a row.

    With the value residual one layer, the first, shares its v^1_t, and later ones mix it in, channel by channel:

        v ← v + σ(v_0 + x^v V_1 V_2) ⊙ (v^1 - v)

    Initial values are those of the authors' code, W_o = 0 included, so that a fresh layer adds nothing; where they
    depend on the layer's index, μ and w_0, they are those of the middle layer of a stack.

    Source: Peng et al. 2025, "RWKV-7 Goose with expressive dynamic state evolution". Its channel mixing is an MLP.
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["rwkv7"] = "rwkv7"
        head_size: int = Field(64, ge=2, description="channels of a head: its memory is this squared")
        values: Literal["own", "share", "mix"] = Field(
            "own", description="share: later layers may mix in these values; mix: mix in those of the layer that shares"
        )
        decay_rank: int | None = Field(None, ge=1, description="of the map that makes decays; default by the width")
        rate_rank: int | None = Field(None, ge=1, description="of the map that makes learning rates")
        gate_rank: int | None = Field(None, ge=1, description="of the map that makes the output gate")
        value_rank: int | None = Field(None, ge=1, description="of the map that says how values are mixed")
        norm_eps: float = Field(1e-5, gt=0, description="what the layer norm adds to a variance, divided by head_size")
        key_norm_eps: float = Field(1e-12, gt=0, description="added to the squared length of a key that is normalised")

    emits = schema(
        {
            "rate": Emission("B T E", "gates", "how far the memory is corrected at a token, mean over channels"),
            "decay": Emission("B T E", "gates", "decay of the memory before a token's write, mean over channels"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        size = config.head_size
        if width % size:
            raise InputError(
                f"rwkv7: width {width} is not divisible by head_size {size}", nearest_divisor(width, size, "head_size")
            )
        self.heads = width // size
        self.receptance = _uniform(width, 0.5)
        self.key = _uniform(width, 0.05)
        self.value = _uniform(width, 0.5)
        self.out = _uniform(width, 0.0)
        self.decay_in, self.decay_out = _low_rank(width, config.decay_rank or _rank(width, 2.5))
        self.rate_in, self.rate_out = _low_rank(width, config.rate_rank or _rank(width, 2.5))
        self.gate_in, self.gate_out = _low_rank(width, config.gate_rank or _rank(width, 5.0))

        at, within = torch.arange(width) / width, torch.arange(width) % size
        linear = torch.arange(width) / max(width - 1, 1)
        zigzag = 2 * within / (size - 1) - 1
        zigzag = zigzag * zigzag.abs()
        slowness = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])  # for r, decay, k, v, rate, gate
        self.mix = nn.Parameter(1 - at ** (slowness[:, None] * (1 - DEPTH)))
        self.decay_bias = nn.Parameter(-5.5 + 6 * linear ** (1 + DEPTH**0.3) + 2.5 * zigzag)
        self.rate_bias = nn.Parameter(-0.19 + 0.3 * zigzag + 0.4 * (linear - 0.5))
        self.k_k = nn.Parameter(0.71 - 0.1 * (linear - 0.5))
        self.k_a = nn.Parameter(torch.full((width,), 1.02))
        self.r_k = nn.Parameter(torch.full((self.heads, size), -0.04))
        self.norm = nn.Parameter(torch.ones(self.heads, size))
        self.norm_bias = nn.Parameter(torch.zeros(self.heads, size))
        if config.values == "mix":
            self.value_in, self.value_out = _low_rank(width, config.value_rank or _rank(width, 1.7))
            self.value_bias = nn.Parameter(0.73 - 0.4 * (linear - 0.5))

    @classmethod
    def shares(cls, config: Config) -> tuple[str, ...]:
        return (VALUES,) if config.values == "share" else ()

    @classmethod
    def uses(cls, config: Config) -> tuple[str, ...]:
        return (VALUES,) if config.values == "mix" else ()

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> RWKV7State:
        size = self.config.head_size
        memory, last = (batch, self.heads, size, size), (batch, 1, self.width)
        return RWKV7State(*(torch.zeros(shape, dtype=self.state_dtype, device=device) for shape in (memory, last)))

    def forward(self, x: Tensor, state: RWKV7State | None, ctx: Pass) -> tuple[Tensor, RWKV7State]:
        state = state or self.init_state(x.shape[0], device=x.device)
        dtype = self.state_dtype
        before = state.last.to(x.dtype)
        last = x[:, -1:] if ctx.lengths is None else ctx.last(torch.cat([before, x], 1), 1)
        for_r, for_decay, for_k, for_v, for_rate, for_gate = token_shift(x, self.mix, before)
        r, k, v = self.receptance(for_r), self.key(for_k), self.value(for_v)
        decay = self.decay_out(torch.tanh(self.decay_in(for_decay)))
        rate = self.rate_out(self.rate_in(for_rate))
        gate = self.gate_out(sigmoid(self.gate_in(for_gate)))
        v = self._values(v, for_v, ctx)
        with torch.autocast(x.device.type, enabled=False):
            log_decay = -FASTEST * sigmoid(decay.to(dtype) + self.decay_bias)
            rate = sigmoid(rate.to(dtype) + self.rate_bias)
            k = k.to(dtype)
            removed = l2_norm(self._heads(k * self.k_k), self.config.key_norm_eps)
            written = k * (1 + (rate - 1) * self.k_a)
            if ctx.mask is not None:  # padding leaves the memory unchanged
                real = ctx.mask[..., None]
                log_decay, rate, written = log_decay * real, rate * real, written * real
            ctx.emit("rate", rate)
            if ctx.trace is not None:
                ctx.emit("decay", log_decay.exp())
            r, written, v, rate, log_decay = (self._heads(y.to(dtype)) for y in (r, written, v, rate, log_decay))
            o, memory = generalized_delta_rule(r, written, v, -removed, rate * removed, log_decay, state.memory)
            o = F.layer_norm(o, o.shape[-1:], eps=self.config.norm_eps * o.shape[-1]) * self.norm + self.norm_bias
            o = o + (r * written * self.r_k).sum(-1, keepdim=True) * v
            y = (o.flatten(2) * gate.to(dtype)).to(gate.dtype)
        return self.out(y), RWKV7State(memory, last.to(dtype, copy=True))

    def _values(self, v: Tensor, for_v: Tensor, ctx: Pass) -> Tensor:
        """Values [B, T, D] as the residual has them."""
        if self.config.values == "share":
            ctx.shared[VALUES] = v
        if self.config.values != "mix":
            return v
        share = self.value_out(self.value_in(for_v)).to(self.state_dtype) + self.value_bias
        return torch.lerp(v.to(share.dtype), ctx.shared[VALUES].to(share.dtype), sigmoid(share))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.config.head_size))

    def flops(self, time: int) -> float:
        """The matrices, and per channel and head KK multiplications to decay, 2KK operations to recall, to remove, to
        write and to read."""
        return super().flops(time) + 9.0 * self.width * self.config.head_size


def _uniform(width: int, scale: float) -> Linear:
    """A square map, initial weights uniform within scale / √width; all zero where scale is."""
    linear = Linear(width, width, bias=False)
    nn.init.uniform_(linear.weight, -scale * width**-0.5, scale * width**-0.5)
    return linear


def _rank(width: int, scale: float) -> int:
    """About scale √width numbers, in steps of 32."""
    return max(32, round(scale * width**0.5 / 32) * 32)


def _low_rank(width: int, rank: int) -> tuple[Linear, Linear]:
    """Maps to and from `rank` numbers: zero at first, and orthogonal of gain 0.1."""
    down, up = Linear(width, rank, bias=False), Linear(rank, width, bias=False)
    nn.init.zeros_(down.weight)
    nn.init.orthogonal_(up.weight, gain=0.1 * max(1.0, rank / width) ** 0.5)
    return down, up

"""Gated linear attention: a memory that adds, with a decay for every key channel."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.mamba import convolve
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.gated_linear_attention import gated_linear_attention
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.short_conv import MAX_TAPS
from synthe_core.ops.silu_gate import silu_gate


class GLAState(NamedTuple):
    """memory [B, H, K, V]; conv [B, J-1, HK + G(K + V)], the last inputs of the convolution of J taps (0 rows
    without)."""

    memory: Tensor
    conv: Tensor


class GLA(Learner[GLAState]):
    """S_t = Diag(α_t) S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t / √K, y_t = W_out (norm(o_t) ⊙ silu(g_t)), head by head.

    x [B, T, D]. One projection of x gives q [B, T, H, K], k [B, T, G, K], v [B, T, G, V], g [B, T, H, V] and `rank`
    numbers, from which a second map makes the decays' logits f [B, T, G, K] with a bias: α_t = σ(f_t)^(1/τ), τ the
    `temperature`. H / G heads in a row share each k, v and α. With `conv` q, k and v pass a causal convolution of so
    many taps and SiLU, without it they are as they are. norm is root-mean-square per head. The memory is HKV numbers a
    row.

    Source: Yang et al. 2024, "Gated linear attention transformers with hardware-efficient training".
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["gla"] = "gla"
        heads: int = Field(4, ge=1)
        kv_heads: int | None = Field(None, ge=1, description="key/value heads; default as many as heads")
        key_size: int | None = Field(None, ge=1, description="size of a head's keys; default half of width / heads")
        value_size: int | None = Field(None, ge=1, description="size of a head's values; default width / heads")
        rank: int = Field(16, ge=1, description="of the map that makes decays")
        temperature: float = Field(16.0, gt=0, description="τ: the larger, the slower memory fades")
        decay_floor: float | None = Field(None, lt=0, description="least logarithm of a decay; null = any")
        conv: int = Field(0, ge=0, le=MAX_TAPS, description="taps of the causal convolution; 0 = none")
        conv_bias: bool = Field(False, description="a bias in the convolution")
        gate: bool = Field(True, description="an output gate per channel")
        norm_eps: float = Field(1e-5, gt=0, description="what the norm of a head's outputs adds to a mean square")

    emits = schema(
        {"decay": Emission("B T H E", "gates", "decay of the memory before a token's write, mean over channels")}
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads, groups = config.heads, config.kv_heads or config.heads
        check_head_sizes(config, width)
        if heads % groups:
            raise InputError(
                f"gla: heads {heads} is not divisible by kv_heads {groups}",
                nearest_divisor(heads, groups, "kv_heads"),
            )
        self.groups = groups
        self.key = config.key_size or max(width // heads // 2, 1)
        self.value = config.value_size or width // heads
        self.mixed = [heads * self.key, groups * self.key, groups * self.value]
        values, channels = heads * self.value, sum(self.mixed)
        self.features = [channels, values if config.gate else 0, config.rank]
        self.project = project_in(width, sum(self.features))
        self.conv1d = None
        if config.conv:
            self.conv1d = nn.Conv1d(channels, channels, config.conv, groups=channels, bias=config.conv_bias)
        self.decay = project_in(config.rank, groups * self.key, bias=True)
        self.out = project_out(values, width)
        self.norm = nn.Parameter(torch.ones(self.value))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> GLAState:
        memory = (batch, self.config.heads, self.key, self.value)
        conv = (batch, max(self.config.conv, 1) - 1, self.features[0])
        return GLAState(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in (memory, conv)))

    def forward(self, x: Tensor, state: GLAState | None, ctx: Pass) -> tuple[Tensor, GLAState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        dtype = self.state_dtype
        mixed, gate, low = self.project(x).split(self.features, dim=-1)
        logits, conv = self.decay(low), state.conv
        mixed = mixed.to(dtype)
        if self.conv1d is not None:
            mixed, conv = convolve(self.conv1d, mixed, conv, ctx)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = mixed.split(self.mixed, dim=-1)
            q = q.unflatten(-1, (-1, self.key))
            k, v = self._to_heads(k, self.key), self._to_heads(v, self.value)
            log_decay = F.logsigmoid(self._to_heads(logits.to(dtype), self.key)) / self.config.temperature
            if self.config.decay_floor is not None:
                log_decay = log_decay.clamp_min(self.config.decay_floor)
            if ctx.trace is not None:
                ctx.emit("decay", log_decay.exp())
            if ctx.mask is not None:  # padding leaves the memory unchanged
                real = ctx.mask[..., None, None]
                k, log_decay = k * real, log_decay * real
            o, memory = gated_linear_attention(q, k, v, log_decay, state.memory)
            eps = self.config.norm_eps * self.key  # that of o / √K
            y = rms_norm(o, self.norm, eps, o.dtype).flatten(2)
            y = silu_gate(y, gate) if self.config.gate else y.to(gate.dtype)
        return self.out(y), GLAState(memory, conv)

    def _to_heads(self, x: Tensor, size: int) -> Tensor:
        """What groups of heads share, [B, T, G size], as every head has it: [B, T, H, size]."""
        return x.unflatten(-1, (-1, size)).repeat_interleave(self.config.heads // self.groups, dim=2)

    def flops(self, time: int) -> float:
        """The matrices, and per head KV multiplications to decay, 2KV operations to write and to read."""
        return super().flops(time) + 5.0 * self.config.heads * self.key * self.value

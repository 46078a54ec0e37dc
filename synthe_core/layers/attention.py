"""Causal softmax attention whose state is a bounded window of keys and values."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.projection import project_in, project_out
from synthe_core.learner import Learner, Pass, Spec
from synthe_core.ops.attention import window_attention
from synthe_core.ops.rotary import rotary

FULL_WINDOW = 1 << 17
EPS = 1e-6


class Window(NamedTuple):
    """The last tokens' keys and values, float32 [B, n, G, K], n at most the window and the oldest token first."""

    keys: Tensor
    values: Tensor


class Attention(Learner[Window]):
    """o_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s over the last `window` tokens, rotary positions, grouped heads.

    x [B, T, D]; H query heads of size K = D / H read G = `kv_heads` key heads. The state grows with the sequence up
    to `window` tokens (`full` = 131,072), 2 n G K values a row.
    Sources: Vaswani et al. 2017; RoPE: Su et al. 2021; GQA: Ainslie et al. 2023; query-key norm: Henry et al. 2020.
    """

    class Config(Spec):
        type: Literal["attention"] = "attention"
        heads: int = Field(8, ge=1)
        kv_heads: int | None = Field(None, ge=1, description="key/value heads; default as many as heads")
        window: int | Literal["full"] = Field("full", description="how many tokens back a token sees, itself included")
        rope: float | None = Field(10_000.0, gt=0, description="base of the rotary frequencies; null = no positions")
        qk_norm: bool = Field(True, description="normalise queries and keys, which keeps large learning rates stable")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.heads, self.groups = config.heads, config.kv_heads or config.heads
        if width % self.heads:
            raise InputError(
                f"attention: width {width} is not divisible by heads {self.heads}", nearest_divisor(width, self.heads)
            )
        if self.heads % self.groups:
            raise InputError(
                f"attention: heads {self.heads} is not divisible by kv_heads {self.groups}",
                nearest_divisor(self.heads, self.groups, "kv_heads"),
            )
        self.size = width // self.heads
        if (config.rope is not None or config.qk_norm) and self.size % 2:
            raise InputError(f"attention: rotary positions need an even head size, not {self.size}", "change heads")
        if isinstance(config.window, int) and config.window < 1:
            raise InputError(f"attention: window must be at least 1, not {config.window}", "or `full`")
        self.window = FULL_WINDOW if config.window == "full" else config.window
        self.qkv = project_in(width, (self.heads + 2 * self.groups) * self.size)
        self.out = project_out(width, width)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> Window:
        return Window(
            *(torch.zeros(batch, 0, self.groups, self.size, dtype=self.state_dtype, device=device) for _ in range(2))
        )

    def forward(self, x: Tensor, state: Window | None, ctx: Pass) -> tuple[Tensor, Window]:
        state = state or self.init_state(x.shape[0], device=x.device)
        heads, v = self.qkv(x).unflatten(-1, (-1, self.size)).split((self.heads + self.groups, self.groups), dim=2)
        if self.config.qk_norm or self.config.rope is not None:
            cos, sin = self._turns(ctx.positions)
            heads = rotary(heads, cos, sin, EPS if self.config.qk_norm else None)
        q, k = heads.split((self.heads, self.groups), dim=2)
        past = state.keys.shape[1]
        if past:
            k = torch.cat([state.keys.to(k.dtype), k], dim=1)
            v = torch.cat([state.values.to(v.dtype), v], dim=1)
        y = window_attention(q, k, v, self.window, self._valid(past, ctx))
        kept = min(self.window, k.shape[1])
        return self.out(y.flatten(2)), Window(*(ctx.last(t, kept).to(state.keys.dtype) for t in (k, v)))

    def _turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of each token's angles [B, T, K/2]: position times base^(-2i / K), exact far into a text."""
        wide = torch.float32 if positions.device.type == "mps" else torch.float64  # mps has no float64
        steps = torch.arange(0, self.size, 2, device=positions.device, dtype=wide)
        frequencies = torch.zeros_like(steps) if self.config.rope is None else self.config.rope ** (-steps / self.size)
        angles = positions[..., None] * frequencies
        return angles.cos().to(self.state_dtype), angles.sin().to(self.state_dtype)

    def _valid(self, past: int, ctx: Pass) -> Tensor | None:
        """Which keys are real: padding is not, nor are places of the window that a shorter row has not filled."""
        if ctx.mask is None and not past:
            return None
        ages = torch.arange(past, 0, -1, device=ctx.positions.device)
        filled = ages <= ctx.positions[:, :1]
        now = ctx.mask if ctx.mask is not None else torch.ones_like(ctx.positions, dtype=torch.bool)
        return torch.cat([filled, now], dim=1)

    def state_bytes(self, time: int) -> int:
        """Keys and values of the window's tokens."""
        return 2 * min(self.window, time) * self.groups * self.size * self.state_dtype.itemsize

    def flops(self, time: int) -> float:
        """The matrices', and 4 K per head for every key that a token sees on average."""
        window = min(self.window, time)
        seen = window - window * (window - 1) / (2 * time)
        return super().flops(time) + 4.0 * self.width * seen

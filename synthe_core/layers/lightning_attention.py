"""Lightning attention: linear attention with one fixed decay a head."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_in, project_out
from synthe_core.ops.activations import sigmoid, silu
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.rms_norm import rms_norm


class LightningAttention(Learner[Tensor]):
    """S_t = λ_h S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t, y_t = W_out (σ(W_g x_t) ⊙ norm(o_t)), head by head.

    x [B, T, D]; [q_t, k_t, v_t] = silu(W_qkv x_t) of every head, K numbers each; log λ_h = -s 2^(-8h/H) for head h = 1
    ... H, where s is `decay_scale`: the published models lower it from 1 in the first layer to almost 0 in the last.
    norm is the root-mean-square norm over the channels of all heads. The state is S, [B, H, K, K].

    Parameters are named and shaped as those of transformers' `MiniMaxLightningAttention`, save `norm`, which is its
    `norm.weight`.

    Sources: Qin et al. 2024 (Lightning Attention-2); MiniMax 2025 (MiniMax-01); the slopes: Press et al. 2022 (ALiBi).
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["lightning_attention"] = "lightning_attention"
        heads: int = Field(8, ge=1)
        head_size: int | None = Field(None, ge=1, description="channels of a head; default the width divided by heads")
        decay_scale: float = Field(1.0, ge=0, description="s: what the logarithms of all decays are multiplied by")
        norm_eps: float = Field(1e-6, gt=0, description="what the norm adds to a mean square")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        if config.head_size is None and width % heads:
            raise InputError(
                f"lightning_attention: width {width} is not divisible by heads {heads}", nearest_divisor(width, heads)
            )
        self.size = config.head_size or width // heads
        channels = heads * self.size
        self.qkv_proj = project_in(width, 3 * channels)
        self.output_gate = project_in(width, channels)
        self.out_proj = project_out(channels, width)
        self.norm = nn.Parameter(torch.ones(channels))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(batch, self.config.heads, self.size, self.size, dtype=self.state_dtype, device=device)

    def forward(self, x: Tensor, state: Tensor | None, ctx: Pass) -> tuple[Tensor, Tensor]:
        state = self.init_state(x.shape[0], device=x.device) if state is None else state
        dtype, heads = self.state_dtype, self.config.heads
        qkv, gate = self.qkv_proj(x), self.output_gate(x)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = silu(qkv.to(dtype)).unflatten(-1, (heads, 3, self.size)).unbind(3)
            write = q.new_ones(*x.shape[:2], heads)
            log_decay = self.log_decays(q.device).to(dtype).expand_as(write)
            if ctx.mask is not None:  # padding leaves the memory unchanged
                write, log_decay = write * ctx.mask[..., None], log_decay * ctx.mask[..., None]
            o, memory = linear_attention(q, k, v, write, log_decay, state)
            y = rms_norm(o.flatten(2), self.norm.to(dtype), self.config.norm_eps, dtype)
            y = (y * sigmoid(gate.to(dtype))).to(gate.dtype)
        return self.out_proj(y), memory

    def log_decays(self, device: torch.device | str = "cpu") -> Tensor:
        """log λ of every head, [H]."""
        head = torch.arange(1, self.config.heads + 1, device=device)
        return -self.config.decay_scale * 2.0 ** (-8 / self.config.heads * head)

    def flops(self, time: int) -> float:
        """The matrices, and per head KK multiplications to decay, 2KK operations to write and to read."""
        return super().flops(time) + 5.0 * self.config.heads * self.size**2

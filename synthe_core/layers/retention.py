"""Retention: a matrix of memory that adds, with rotary keys and one fixed decay a head."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.rope import pass_angles
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.rotary import rotary
from synthe_core.ops.silu_gate import silu_gate


class Retention(Learner[Tensor]):
    """S_t = γ_h S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t / √K, y_t = W_out (norm(o_t) ⊙ silu(W_g x_t)), head by head.

    x [B, T, D]; [q_t, k_t, v_t] = W x_t of every head, K numbers each of q and k and V of v; rotary positions turn q
    and k. γ_h = 1 - 2^(-5-h) for head h = 0 ... H - 1: each head remembers for twice as many tokens as the one before
    it, the first for about 32. norm is root-mean-square per head. The state is S, HKV numbers a row.

    Source: Sun et al. 2023, "Retentive network", with rotary positions and the norm as in fla.
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["retention"] = "retention"
        heads: int = Field(8, ge=1, le=40)  # of more heads the last would never forget in float32
        key_size: int | None = Field(None, ge=1, description="size of a head's keys; default width / heads")
        value_size: int | None = Field(
            None, ge=1, description="size of a head's values; default twice the width / heads"
        )
        rope: float | None = Field(10_000.0, gt=0, description="base of the rotary frequencies; null = no positions")
        gate: bool = Field(True, description="an output gate per channel")
        norm_eps: float = Field(1e-5, gt=0, description="what the norm of a head's outputs adds to a mean square")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        check_head_sizes(config, width)
        self.key = config.key_size or width // heads
        self.value = config.value_size or 2 * width // heads
        if config.rope is not None and self.key % 2:
            raise InputError(f"retention: rotary positions need an even key_size, not {self.key}", "or set rope: null")
        keys, values = heads * self.key, heads * self.value
        self.features = [2 * keys, values, values if config.gate else 0]
        self.project = project_in(width, sum(self.features))
        self.out = project_out(values, width)
        self.norm = nn.Parameter(torch.ones(self.value))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(batch, self.config.heads, self.key, self.value, dtype=self.state_dtype, device=device)

    def forward(self, x: Tensor, state: Tensor | None, ctx: Pass) -> tuple[Tensor, Tensor]:
        state = self.init_state(x.shape[0], device=x.device) if state is None else state
        dtype, heads = self.state_dtype, self.config.heads
        qk, v, gate = self.project(x).split(self.features, dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            qk = qk.to(dtype).unflatten(-1, (2 * heads, self.key))
            if self.config.rope is not None:
                cos, sin = pass_angles(ctx, ctx.positions, self.key, self.config.rope, None, dtype)
                qk = rotary(qk, cos, sin, None)
            q, k = qk.split(heads, dim=2)
            v = v.to(dtype).unflatten(-1, (heads, self.value))
            write = v.new_ones(v.shape[:3])
            log_decay = self.log_decays(dtype, v.device).expand_as(write)
            if ctx.mask is not None:  # padding leaves the memory unchanged
                write, log_decay = write * ctx.mask[..., None], log_decay * ctx.mask[..., None]
            o, memory = linear_attention(q, k, v, write, log_decay, state)
            eps = self.config.norm_eps * self.key  # that of o / √K
            y = rms_norm(o, self.norm, eps, dtype).flatten(2)
            y = silu_gate(y, gate) if self.config.gate else y.to(gate.dtype)
        return self.out(y), memory

    def log_decays(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """log γ of every head, [H]."""
        head = torch.arange(self.config.heads, device=device, dtype=dtype)
        return torch.log1p(-(2.0 ** (-5 - head)))

    def flops(self, time: int) -> float:
        """The matrices, and per head KV multiplications to decay, 2KV operations to write and to read."""
        return super().flops(time) + 5.0 * self.config.heads * self.key * self.value

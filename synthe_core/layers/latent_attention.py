"""Multi-head latent attention: keys and values of all heads are made from one small vector, which is the state."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.adapter_batch import per_adapter
from synthe_core.layers.attention import FULL_WINDOW
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.rope import Scaling, check_pairs, pass_angles
from synthe_core.ops.attention import window_attention
from synthe_core.ops.linear import block_linear
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.rotary import rotary


class LatentAttentionState(NamedTuple):
    """latents [B, n, R + P]: the last tokens' latents beside their rotated shared keys, n at most the window and the
    oldest token first. Of the n of a row only the last `filled` [B] are real: other rows may have seen more."""

    latents: Tensor
    filled: Tensor


class LatentAttention(Learner[LatentAttentionState]):
    """c_t = norm(W_c x_t), r_t = rot(W_r x_t); for every head h, k_s = [K_h c_s, r_s] and v_s = V_h c_s;

        o_t = Σ_s softmax_s(scale q_t · k_s) v_s over the last `window` tokens,  y_t = W_out [o_t of every head]

    x [B, T, D]; c_t of R = `rank` numbers; K_h c_t of `key_size`, v_t of `value_size`, and r_t of P = `rope_size`
    numbers, which all heads share. q_t [H, key_size + P] is a map of x_t, or of norm(W_q x_t) with `q_rank` numbers;
    its last P numbers are rotated as r_t is. The state is c_t and r_t: (R + P) n numbers a row.

    A pass of many tokens expands keys and values. A pass of few does not: q · K_h c = (K_hᵀ q) · c, so that queries
    are brought to the size of the latents once, all heads read those, and V_h comes after the softmax. Both are the
    same function, and round differently.

    Sources: DeepSeek-AI 2024 (DeepSeek-V2: the latent, the shared rotary key, q_rank); Kimi Team 2025 (no positions).
    """

    class Config(LearnerConfig):
        type: Literal["latent_attention"] = "latent_attention"
        heads: int = Field(8, ge=1)
        rank: int | None = Field(None, ge=1, description="numbers of the latent; default 4 key_size")
        q_rank: int | None = Field(None, ge=1, description="numbers that queries are made from; null = the input")
        key_size: int | None = Field(
            None, ge=1, description="size of a head's keys without the shared part; default width / heads"
        )
        value_size: int | None = Field(None, ge=1, description="size of a head's values; default width / heads")
        rope_size: int | None = Field(
            None, ge=0, description="size of the key that all heads share; default half of key_size; 0 = none"
        )
        window: int | Literal["full"] = Field("full", description="how many tokens back a token sees, itself included")
        rope: float | None = Field(10_000.0, gt=0, description="base of the rotary frequencies; null = no positions")
        rope_scaling: Scaling | None = Field(None, description="how rotary positions are stretched for longer texts")
        interleaved: bool = Field(False, description="rotate neighbouring channels, not channels half a key apart")
        scale: float | None = Field(
            None, gt=0, description="what scores are multiplied by; default (key_size + rope_size)^-1/2"
        )
        norm_eps: float = Field(1e-6, gt=0, description="what the norms of latents add to a mean square")
        bias: bool = Field(False, description="learned biases of the maps to latents and of the output")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = self.heads = config.heads
        check_head_sizes(config, width)
        self.key, self.value = config.key_size or width // heads, config.value_size or width // heads
        self.rank = config.rank or 4 * self.key
        self.shared = -(-self.key // 4) * 2 if config.rope_size is None else config.rope_size
        if config.rope is not None and self.shared % 2:
            raise InputError(
                f"latent_attention: rotary positions need an even rope_size, not {self.shared}", "or rope: null"
            )
        if config.rope is None and config.rope_scaling is not None:
            raise InputError(
                "latent_attention: rope_scaling stretches rotary positions, and rope is null", "leave one out"
            )
        check_pairs(config.rope_scaling, self.shared // 2, "latent_attention")
        if isinstance(config.window, int) and config.window < 1:
            raise InputError(f"latent_attention: window must be at least 1, not {config.window}", "or `full`")
        self.window = FULL_WINDOW if config.window == "full" else config.window
        self.scale = config.scale or (self.key + self.shared) ** -0.5
        queries = heads * (self.key + self.shared)
        if config.q_rank is None:
            self.q = project_in(width, queries)
        else:
            self.q_down = project_in(width, config.q_rank, config.bias)
            self.q_norm = nn.Parameter(torch.ones(config.q_rank))
            self.q = project_in(config.q_rank, queries)
        self.kv_down = project_in(width, self.rank + self.shared, config.bias)
        self.kv_norm = nn.Parameter(torch.ones(self.rank))
        self.kv = project_in(self.rank, heads * (self.key + self.value))
        self.out = project_out(heads * self.value, width, config.bias)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> LatentAttentionState:
        sizes = (batch, 0, self.rank + self.shared), (batch,)
        return LatentAttentionState(*(torch.zeros(n, dtype=self.state_dtype, device=device) for n in sizes))

    def forward(self, x: Tensor, state: LatentAttentionState | None, ctx: Pass) -> tuple[Tensor, LatentAttentionState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        narrow = x if self.config.q_rank is None else self._normed(self.q_down(x), self.q_norm)
        q = self.q(narrow).unflatten(-1, (self.heads, -1))
        latent, shared = self.kv_down(x).split([self.rank, self.shared], dim=-1)
        latent = self._normed(latent, self.kv_norm)
        if self.config.rope is not None and self.shared:
            q_key, q_shared = q.split([self.key, self.shared], dim=-1)
            q_shared, shared = self._rotate(torch.cat([q_shared, shared[:, :, None]], 2), ctx).split([self.heads, 1], 2)
            q, shared = torch.cat([q_key, q_shared], -1), shared[:, :, 0]
        latents = torch.cat([latent, shared], -1)
        if state.latents.shape[1]:
            latents = torch.cat([state.latents.to(latents.dtype), latents], 1)
        valid = ctx.valid(state.latents.shape[1], state.filled)
        if self._absorbs(x.shape[1]):
            masks = () if valid is None else (valid,)
            o = per_adapter((self.kv,), self._read_latents, q, latents, masks)
        else:
            o = self._read_expanded(q, latents, valid)
        length = min(self.window, latents.shape[1])
        new = x.shape[1] if ctx.mask is None else ctx.mask.sum(1)
        after = ctx.last(latents, length).to(state.latents.dtype)
        return self.out(o.flatten(2)), LatentAttentionState(after, (state.filled + new).clamp_max(length))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """x at unit scale, times `weight`."""
        wide = self.state_dtype
        return rms_norm(x.to(wide), weight.to(wide), self.config.norm_eps, x.dtype)

    def _rotate(self, heads: Tensor, ctx: Pass) -> Tensor:
        """[B, T, H, P] rotated by their positions; of interleaved pairs, the first channels come before the second."""
        if self.config.interleaved:
            heads = torch.cat([heads[..., 0::2], heads[..., 1::2]], -1)
        config = self.config
        cos, sin = pass_angles(ctx, ctx.positions, self.shared, config.rope, config.rope_scaling, self.state_dtype)
        return rotary(heads, cos, sin, None)

    def _absorbs(self, time: int) -> bool:
        """Whether queries of `time` tokens cost less against a long past of latents than keys expanded from them."""
        more = 2 * self.rank - self.key - self.value  # a pair of tokens costs that much more
        return time == 1 or time * more < self.rank * (self.key + self.value)

    def _read_expanded(self, q: Tensor, latents: Tensor, valid: Tensor | None) -> Tensor:
        """o [B, T, H, V] of keys and values made for every head."""
        latent, shared = latents.split([self.rank, self.shared], dim=-1)
        k, v = self.kv(latent).unflatten(-1, (self.heads, -1)).split([self.key, self.value], dim=-1)
        k = torch.cat([k, shared[:, :, None].expand(-1, -1, self.heads, -1)], -1)
        size = max(q.shape[-1], self.value)  # torch's fused attention needs keys and values of one size
        q = q * (self.scale * size**0.5)
        q, k, v = (F.pad(part, (0, size - part.shape[-1])) for part in (q, k, v))
        return window_attention(q, k, v, self.window, valid)[..., : self.value]

    def _read_latents(self, q: Tensor, latents: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
        """o [B, T, H, V] of queries that are brought to the size of the latents: these are keys and values."""
        weight = self.kv.weight.to(q.dtype).unflatten(0, (self.heads, -1))
        to_key, to_value = weight.split([self.key, self.value], dim=1)  # [H, K, R] and [H, V, R]
        q_key, q_shared = q.split([self.key, self.shared], dim=-1)
        q = torch.cat([block_linear(q_key, to_key.transpose(1, 2)), q_shared], -1)
        q = q * (self.scale * q.shape[-1] ** 0.5)
        entries = latents[:, :, None]
        read = window_attention(q, entries, entries, self.window, masks[0] if masks else None)
        return block_linear(read[..., : self.rank], to_value)

    def state_bytes(self, time: int) -> int:
        """The window's latents and shared keys, and their count."""
        return (min(self.window, time) * (self.rank + self.shared) + 1) * self.state_dtype.itemsize

    def flops(self, time: int) -> float:
        """The matrices', and per head 2 (K + P + V) for every key that a token sees on average, expanded."""
        window = min(self.window, time)
        seen = window - window * (window - 1) / (2 * time)
        return super().flops(time) + 2.0 * self.heads * (self.key + self.shared + self.value) * seen

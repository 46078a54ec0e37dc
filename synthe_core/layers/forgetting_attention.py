"""Softmax attention with a forget gate, whose state is a bounded window of keys, values and forgetting."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.attention import FULL_WINDOW
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.forgetting_attention import forgetting_attention
from synthe_core.ops.rms_norm import rms_norm


class ForgettingAttentionState(NamedTuple):
    """The last tokens' keys and values, float32 [B, n, G, K], n at most the window and the oldest token first, and
    forgotten [B, n, H]: the sum of the log forget gates of all tokens after each.

    Of the n of a row only the last `filled` [B] are real: other rows may have seen more.
    """

    keys: Tensor
    values: Tensor
    forgotten: Tensor
    filled: Tensor


class ForgettingAttention(Learner[ForgettingAttentionState]):
    """o_t = sum_s softmax_s(q_t . k_s / sqrt(K) + sum_{s < r <= t} log f_r) v_s over the last `window` tokens.

    x [B, T, D]; H query heads of size K read G = `kv_heads` key heads. f_t = σ(W_f x_t + b) of every query head, whose
    bias begins such that heads forget within 4 to 1,024 tokens. There are no positions: forgetting is what makes
    near tokens differ from far ones. Queries and keys are normalised per head, with weights. With `gate` the heads'
    outputs are multiplied by σ(W_g x), channel by channel. The state grows up to `window` tokens (`full` =
    131,072), n (2 G K + H) numbers a row.

    Source: Lin et al. 2025, "Forgetting transformer"; the layer as in fla.
    """

    class Config(LearnerConfig):
        type: Literal["forgetting_attention"] = "forgetting_attention"
        heads: int = Field(8, ge=1)
        kv_heads: int | None = Field(None, ge=1, description="key/value heads; default as many as heads")
        head_size: int | None = Field(None, ge=1, description="channels of a head; default the width divided by heads")
        window: int | Literal["full"] = Field("full", description="how many tokens back a token sees, itself included")
        qk_norm: bool = Field(True, description="normalise queries and keys, with a scale for each channel of a head")
        norm_eps: float = Field(1e-6, gt=0, description="what that norm adds to a mean square")
        gate: bool = Field(False, description="a sigmoid gate on every channel of the heads' outputs")
        timescales: tuple[float, float] = Field(
            (4.0, 1024.0), description="initial timescales of the heads' forgetting in tokens, shortest and longest"
        )

    emits = schema({"forget": Emission("B T H", "gates", "forget gate: what scores of all earlier tokens retain")})

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.heads, self.groups = config.heads, config.kv_heads or config.heads
        self._check(config, width)
        self.size = config.head_size or width // self.heads
        self.window = FULL_WINDOW if config.window == "full" else config.window
        counts = (self.heads, self.groups, self.groups, self.heads * config.gate)
        self.features = [*(n * self.size for n in counts), self.heads]
        self.project = project_in(width, sum(self.features))
        self.out = project_out(self.heads * self.size, width)
        if config.qk_norm:
            self.q_norm, self.k_norm = (nn.Parameter(torch.ones(self.size)) for _ in range(2))
        shortest, longest = (math.log(scale) for scale in config.timescales)
        scales = torch.linspace(shortest, longest, self.heads).exp()
        self.forget_bias = nn.Parameter(-torch.expm1(1 / scales).log())  # log σ(b) = -1 / scale

    def _check(self, config: Config, width: int) -> None:
        if config.head_size is None and width % self.heads:
            raise InputError(
                f"forgetting_attention: width {width} is not divisible by heads {self.heads}",
                nearest_divisor(width, self.heads),
            )
        if self.heads % self.groups:
            raise InputError(
                f"forgetting_attention: heads {self.heads} is not divisible by kv_heads {self.groups}",
                nearest_divisor(self.heads, self.groups, "kv_heads"),
            )
        if isinstance(config.window, int) and not 2 <= config.window < 2**31:
            raise InputError(
                f"forgetting_attention: window must be at least 2 and below {2**31}, not {config.window}", "or `full`"
            )
        if not 0.1 <= config.timescales[0] <= config.timescales[1]:
            raise InputError(
                f"forgetting_attention: timescales must rise from 0.1 or more, not {list(config.timescales)}",
                "such as [4, 1024]",
            )

    @property
    def alignment(self) -> int | None:
        return None  # running sums round differently where they begin

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> ForgettingAttentionState:
        empty = (batch, 0, self.groups, self.size)
        sizes = (empty, empty, (batch, 0, self.heads), (batch,))
        return ForgettingAttentionState(*(torch.zeros(n, dtype=self.state_dtype, device=device) for n in sizes))

    def forward(
        self, x: Tensor, state: ForgettingAttentionState | None, ctx: Pass
    ) -> tuple[Tensor, ForgettingAttentionState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        q, k, v, gate, forget = self.project(x).split(self.features, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.size)) for part in (q, k, v))
        if self.config.qk_norm:
            q, k = self._normed(q, self.q_norm), self._normed(k, self.k_norm)
        reach = self._reach(forget.to(self.state_dtype), state.forgotten, ctx)
        if state.keys.shape[1]:
            k = torch.cat([state.keys.to(k.dtype), k], dim=1)
            v = torch.cat([state.values.to(v.dtype), v], dim=1)
        valid = ctx.valid(state.keys.shape[1], state.filled)
        o = forgetting_attention(q, k, v, reach, self.window, valid).flatten(2)
        y = self.out(o * sigmoid(gate) if self.config.gate else o)
        length = min(self.window, k.shape[1])
        last = [ctx.last(part, length).to(self.state_dtype) for part in (k, v, reach[:, -1:] - reach)]
        new = x.shape[1] if ctx.mask is None else ctx.mask.sum(1)
        return y, ForgettingAttentionState(last[0], last[1], last[2], (state.filled + new).clamp_max(length))

    def _reach(self, forget: Tensor, forgotten: Tensor, ctx: Pass) -> Tensor:
        """Running sums of log f [B, n + T, H] of the window's tokens and this pass's, 0 before it."""
        log_forget = F.logsigmoid(forget + self.forget_bias.to(forget.dtype))
        if ctx.trace is not None:
            ctx.emit("forget", log_forget.exp())
        if ctx.mask is not None:  # padding forgets nothing
            log_forget = log_forget * ctx.mask[..., None]
        return torch.cat([-forgotten, log_forget.cumsum(1)], dim=1)

    def _normed(self, heads: Tensor, weight: Tensor) -> Tensor:
        wide = self.state_dtype
        return rms_norm(heads.to(wide), weight.to(wide), self.config.norm_eps, heads.dtype)

    def state_bytes(self, time: int) -> int:
        """Keys, values and forgetting of the window's tokens, and their count."""
        token = 2 * self.groups * self.size + self.heads
        return (min(self.window, time) * token + 1) * self.state_dtype.itemsize

    def flops(self, time: int) -> float:
        """The matrices', and 4 K per head for every key that a token sees on average."""
        window = min(self.window, time)
        seen = window - window * (window - 1) / (2 * time)
        return super().flops(time) + 4.0 * self.heads * self.size * seen

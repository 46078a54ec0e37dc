"""Softmax attention of an encoder: every token reads the whole text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.rope import pass_angles
from synthe_core.ops.rotary import rotary
from synthe_core.ops.scaled_dot_product_attention import scaled_dot_product_attention

NORM_EPS = 1e-6  # what the norm of queries and keys adds to a mean square


class BidirectionalAttention(Learner[tuple[()]]):
    """o_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s over all tokens s of the text, before and after t.

    x [B, T, D]; H heads of size K = D / H, rotary positions, queries and keys at unit scale. Padding is read by no
    token. No state, since a token sees what comes after it. `attention` is the causal one.

    Sources: Vaswani et al. 2017; Devlin et al. 2019 (BERT); RoPE: Su et al. 2021; query-key norm: Henry et al. 2020.
    """

    causal = False

    class Config(LearnerConfig):
        type: Literal["bidirectional_attention"] = "bidirectional_attention"
        heads: int = Field(8, ge=1)
        rope: float | None = Field(10_000.0, gt=0, description="base of the rotary frequencies; null = no positions")
        qk_norm: bool = Field(True, description="normalise queries and keys, which keeps large learning rates stable")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        if width % config.heads:
            raise InputError(
                f"bidirectional_attention: width {width} is not divisible by heads {config.heads}",
                nearest_divisor(width, config.heads),
            )
        self.size = width // config.heads
        if config.rope is not None and self.size % 2:
            raise InputError(
                f"bidirectional_attention: rotary positions need an even head size, not {self.size}", "change heads"
            )
        self.qkv = project_in(width, 3 * width)
        self.out = project_out(width, width)

    def init_state(self, batch: int, *, device: object = "cpu") -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None, ctx: Pass) -> tuple[Tensor, tuple[()]]:
        heads = self.qkv(x).unflatten(-1, (3 * self.config.heads, self.size))
        qk, v = heads.split((2 * self.config.heads, self.config.heads), dim=2)
        eps = NORM_EPS if self.config.qk_norm else None
        if self.config.rope is not None or eps is not None:
            turned = self.size - self.size % 2  # an odd head has no positions, and all angles are 0
            cos, sin = pass_angles(ctx, ctx.positions, turned, self.config.rope, None, self.state_dtype)
            qk = rotary(qk, cos, sin, eps)
        q, k = qk.chunk(2, dim=2)
        if ctx.mask is not None:
            v = v.masked_fill(~ctx.mask[..., None, None], 0.0)  # a weight of 0 times infinity is no 0
        mask = None if ctx.mask is None else ctx.mask[:, None, None]
        o = scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), attn_mask=mask)
        if mask is not None:  # a text without tokens reads nothing, not NaN
            o = o.masked_fill(~mask.any(-1, keepdim=True), 0.0)
        return self.out(o.transpose(1, 2).flatten(2)), ()

    def flops(self, time: int) -> float:
        """The matrices', and 4 D for every token of the text."""
        return super().flops(time) + 4.0 * self.width * time

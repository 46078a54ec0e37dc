"""LFM2's short convolution between two gates that the input sets."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.mamba import convolve
from synthe_core.layers.projection import project_in, project_out
from synthe_core.ops.short_conv import MAX_TAPS


class GatedConv(Learner[Tensor]):
    """y_t = W_out (C_t ⊙ Σ_j w_j ⊙ v_{t-J+1+j}), v_t = B_t ⊙ u_t with [B_t, C_t, u_t] = W_in x_t.

    x [B, T, D]; the sum is over the last J = `taps` tokens, channel by channel. The state is the last J - 1 products v,
    [B, J-1, D].

    Parameters are named and shaped as those of transformers' `Lfm2ShortConv`.

    Source: Liquid AI 2025, "LFM2 technical report".
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["gated_conv"] = "gated_conv"
        taps: int = Field(3, ge=2, le=MAX_TAPS, description="tokens that each output sees, itself included")
        bias: bool = Field(False, description="learned biases of both projections and the convolution")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.in_proj = project_in(width, 3 * width, config.bias)
        self.conv = nn.Conv1d(width, width, config.taps, groups=width, bias=config.bias)
        self.out_proj = project_out(width, width, config.bias)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(batch, self.config.taps - 1, self.width, dtype=self.state_dtype, device=device)

    def forward(self, x: Tensor, state: Tensor | None, ctx: Pass) -> tuple[Tensor, Tensor]:
        state = self.init_state(x.shape[0], device=x.device) if state is None else state
        into, out, value = self.in_proj(x).chunk(3, dim=-1)
        mixed, state = convolve(self.conv, (into * value).to(self.state_dtype), state, ctx, silu=False)
        return self.out_proj((out * mixed).to(out.dtype)), state

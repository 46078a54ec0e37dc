"""A short causal convolution by itself."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_out
from synthe_core.ops.short_conv import MAX_TAPS, short_conv, with_history


class Conv(Learner[Tensor]):
    """y_t = W silu(Σ_j w_j ⊙ x_{t-J+1+j}), x [B, T, D]; the state is the last J - 1 inputs [B, J-1, D].

    Placed before a mixer without a convolution of its own, such as attention, it shows each token the preceding ones,
    which recall needs. Source: Arora et al. 2023, "Zoology" (BaseConv).
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["conv"] = "conv"
        taps: int = Field(4, ge=2, le=MAX_TAPS, description="tokens that each output sees, itself included")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.weight = nn.Parameter(torch.empty(width, config.taps).uniform_(-1, 1).mul_(config.taps**-0.5))
        self.out = project_out(width, width)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(batch, self.config.taps - 1, self.width, dtype=self.state_dtype, device=device)

    def forward(self, x: Tensor, state: Tensor | None, ctx: Pass) -> tuple[Tensor, Tensor]:
        state = self.init_state(x.shape[0], device=x.device) if state is None else state
        inputs = x.to(self.state_dtype)
        y, last = short_conv(inputs, self.weight, state)
        if ctx.lengths is not None:
            last = ctx.last(with_history(inputs, state, self.config.taps), self.config.taps - 1)
        return self.out(y), last

"""RWKV's channel mixing: an MLP with squared ReLU, which also reads the token before."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_in, project_out
from synthe_core.ops.token_shift import token_shift


class ChannelMixing(Learner[Tensor]):
    """y_t = W_v relu(W_k (x_t + μ ⊙ (x_{t-1} - x_t)))²; x [B, T, D], μ [D]; the state is the last input, [B, 1, D].

    Source: Peng et al. 2023 (RWKV); without a gate, as Peng et al. 2025 (RWKV-7).
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["channel_mixing"] = "channel_mixing"
        hidden: int | None = Field(None, ge=1, description="inner width; default 4 times the width, rounded up to 32")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        hidden = config.hidden or -(-4 * width // 32) * 32
        self.mix = nn.Parameter(1 - (torch.arange(width) / width) ** 0.0625)  # the authors', in the middle of a stack
        self.key = project_in(width, hidden)
        self.value = project_out(hidden, width)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(batch, 1, self.width, dtype=self.state_dtype, device=device)

    def forward(self, x: Tensor, state: Tensor | None, ctx: Pass) -> tuple[Tensor, Tensor]:
        state = self.init_state(x.shape[0], device=x.device) if state is None else state
        before = state.to(x.dtype)
        (mixed,) = token_shift(x, self.mix[None], before)
        last = x[:, -1:] if ctx.lengths is None else ctx.last(torch.cat([before, x], 1), 1)
        return self.value(self.key(mixed).relu().square()), last.to(self.state_dtype, copy=True)

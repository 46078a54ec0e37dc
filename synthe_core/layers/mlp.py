"""SwiGLU, the plain feed-forward learner: it remembers nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_in, project_out
from synthe_core.ops.swiglu import swiglu


class MLP(Learner[tuple[()]]):
    """y = W_out (silu(W_g x) * W_u x), x [B, T, D], no state. Source: Shazeer 2020, "GLU variants"."""

    class Config(LearnerConfig):
        type: Literal["mlp"] = "mlp"
        hidden: int | None = Field(None, ge=1, description="inner width; default 8/3 of the width, rounded up to 32")
        bias: bool = Field(False, description="learned biases, as some published transformers have")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        hidden = config.hidden or -(-8 * width // (3 * 32)) * 32
        self.gate_up = project_in(width, 2 * hidden, config.bias)
        self.out = project_out(hidden, width, config.bias)

    def init_state(self, batch: int, *, device: object = "cpu") -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None, ctx: Pass) -> tuple[Tensor, tuple[()]]:
        return self.out(swiglu(self.gate_up(x))), ()

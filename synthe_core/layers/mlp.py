"""The plain feed-forward learner, gated or not: it remembers nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_in, project_out
from synthe_core.ops.activations import ACTIVATIONS, Activation
from synthe_core.ops.swiglu import swiglu


class MLP(Learner[tuple[()]]):
    """y = W_out (f(W_g x) ⊙ W_u x), or without a gate y = W_out f(W_u x); x [B, T, D], f an activation, no state.

    Sources: Shazeer 2020, "GLU variants" (the gate); So et al. 2021 (relu²).
    """

    class Config(LearnerConfig):
        type: Literal["mlp"] = "mlp"
        hidden: int | None = Field(None, ge=1, description="inner width; default 8/3 of the width, rounded up to 32")
        activation: Activation = Field("silu", description="f; gelu_tanh: its approximation by tanh; relu2: relu²")
        gated: bool = Field(True, description="multiply f of one map by another; false: one map and f")
        bias: bool = Field(False, description="learned biases, as some published transformers have")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        hidden = config.hidden or -(-8 * width // (3 * 32)) * 32
        if config.gated:
            self.gate_up = project_in(width, 2 * hidden, config.bias)
        else:
            self.up = project_in(width, hidden, config.bias)
        self.out = project_out(hidden, width, config.bias)

    def init_state(self, batch: int, *, device: object = "cpu") -> tuple[()]:
        return ()

    def forward(self, x: Tensor, state: tuple[()] | None, ctx: Pass) -> tuple[Tensor, tuple[()]]:
        return self.out(self._inner(x)), ()

    def _inner(self, x: Tensor) -> Tensor:
        """What the output map reads, [B, T, hidden]."""
        activate = ACTIVATIONS[self.config.activation]
        if not self.config.gated:
            return activate(self.up(x))
        if self.config.activation == "silu":
            return swiglu(self.gate_up(x))
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return activate(gate) * up

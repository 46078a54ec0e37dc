"""The plain feed-forward learner, gated or not: it remembers nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_in, project_out
from synthe_core.ops.activations import ACTIVATIONS, Activation
from synthe_core.ops.swiglu import swiglu


class MLP(Learner[tuple[()]]):
    """y = W_out (f(m W_g x) ⊙ W_u x), or without a gate y = W_out f(W_u x); x [B, T, D], f an activation, m =
    `gate_scale`, no state.

    Sources: Shazeer 2020, "GLU variants" (the gate); So et al. 2021 (relu²).
    """

    class Config(LearnerConfig):
        type: Literal["mlp"] = "mlp"
        hidden: int | None = Field(None, ge=1, description="inner width; default 8/3 of the width, rounded up to 32")
        activation: Activation = Field("silu", description="f; gelu_tanh: its approximation by tanh; relu2: relu²")
        gated: bool = Field(True, description="multiply f of one map by another; false: one map and f")
        gate_scale: float = Field(1.0, description="m: what the gate is multiplied by before f")
        bias: bool = Field(False, description="learned biases, as some published transformers have")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        if config.gate_scale != 1 and not config.gated:
            raise InputError("mlp: gate_scale multiplies a gate, and gated is false", "leave one of them out")
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
        scale = self.config.gate_scale
        if self.config.activation == "silu" and scale == 1:
            return swiglu(self.gate_up(x))
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return activate(gate if scale == 1 else gate * scale) * up

"""A gated moving average of the layer's inputs: the cheapest memory."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.gated_average import gated_average
from synthe_core.ops.silu_gate import silu_gate

OP_FLOPS = 7  # a channel: three for the sigmoid, four for the recurrence

Timescale = Annotated[float, Field(gt=1)]


class MomentumState(NamedTuple):
    """The running average h [B, E]."""

    average: Tensor


class Momentum(Learner[MomentumState]):
    """h_t = a_t ⊙ h_{t-1} + (1 - a_t) ⊙ v_t with a_t = σ(W_a x_t + b), v_t = W_v x_t; y_t = W_o (h_t ⊙ silu(W_g x_t)).

    x [B, T, D], E = expand · D channels, state h [B, E]. The bias b starts so that the averages reach back over
    timescales 1 / (1 - a) spread evenly in their logarithm. Padding is a = 1. Raises InputError if no channel is left.
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["momentum"] = "momentum"
        expand: float = Field(1.0, gt=0, description="channels averaged, as a multiple of the width")
        gate: bool = Field(True, description="gate the average by silu of a projection of the input")
        timescales: tuple[Timescale, Timescale] = Field(
            (2.0, 256.0), description="initial timescales of the averages in tokens, shortest and longest"
        )

    emits = schema(
        {
            "gate": Emission("B T E", "gates", "decay of the average at a token, mean over channels"),
            "average": Emission("B T E", "memory", "the running average, root mean square over channels", "rms"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.channels = round(config.expand * width)
        if self.channels < 1:
            raise InputError(
                f"expand {config.expand:g} of width {width} leaves no channel", f"{1 / width:g} is the least that does"
            )
        self.project = project_in(width, (3 if config.gate else 2) * self.channels)
        self.decay_bias = nn.Parameter((log_spaced(config.timescales, self.channels) - 1).log())
        self.out = project_out(self.channels, width)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> MomentumState:
        return MomentumState(torch.zeros(batch, self.channels, dtype=self.state_dtype, device=device))

    def forward(self, x: Tensor, state: MomentumState | None, ctx: Pass) -> tuple[Tensor, MomentumState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        decay, value, *gate = self.project(x).split(self.channels, dim=-1)
        logits = (decay + self.decay_bias).to(self.state_dtype)
        if ctx.mask is not None:
            logits = logits.masked_fill(~ctx.mask[..., None], math.inf)
        if ctx.trace is not None:
            ctx.emit("gate", sigmoid(logits))
        average, last = gated_average(logits, value.to(self.state_dtype), state.average)
        ctx.emit("average", average)
        return self.out(silu_gate(average, gate[0]) if gate else average.to(value.dtype)), MomentumState(last)

    def flops(self, time: int) -> float:
        return super().flops(time) + OP_FLOPS * self.channels


def log_spaced(ends: tuple[float, float], count: int) -> Tensor:
    """`count` numbers between two, both included, evenly spaced in their logarithm."""
    return torch.logspace(math.log10(ends[0]), math.log10(ends[1]), count)

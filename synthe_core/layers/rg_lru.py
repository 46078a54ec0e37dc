"""Griffin's recurrent block: a gated linear recurrence in every channel, behind a convolution and beside a gate."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.mamba import convolve
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import gelu, sigmoid, silu, softplus
from synthe_core.ops.linear import block_linear
from synthe_core.ops.linear_scan import linear_scan
from synthe_core.ops.short_conv import MAX_TAPS

SHARPNESS = 8.0  # c of the equation
DECAYS = (0.9, 0.999)  # initial range of a where its gate is open
STEEPEST = 1000.0  # largest slope that a square root has in the backward pass


class RGLRUState(NamedTuple):
    """scan [B, E], the recurrence's; conv [B, J-1, E], the last inputs of the convolution of J taps."""

    scan: Tensor
    conv: Tensor


class RGLRU(Learner[RGLRUState]):
    """h_t = a_t ⊙ h_{t-1} + sqrt(1 - a_t²) ⊙ i_t ⊙ u_t,  y_t = W_out (h_t ⊙ gelu(W_y x_t)),

        a_t = exp(-8 softplus(Λ) ⊙ σ(R u_t + b_r)),  i_t = σ(I u_t + b_i)

    x [B, T, D]; u = W_x x, [B, T, E], after a causal convolution of `conv` taps without activation. R and I are
    block-diagonal, with H = `heads` square blocks. The first token of a sequence enters with factor 1 in place of
    sqrt(1 - a²), as nothing comes before it. Λ starts so that a is uniform in [0.9, 0.999] where its gate is open. The
    slope of the square root is at most 1000. The state is E J numbers a row.

    Parameters are named as those of transformers' `RecurrentGemmaRecurrentBlock` and have the same shapes.

    Source: De et al. 2024, "Griffin: Mixing gated linear recurrences with local attention".
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["rg_lru"] = "rg_lru"
        heads: int = Field(8, ge=1, description="blocks of the gates' matrices")
        channels: int | None = Field(None, ge=1, description="channels of the recurrence; default the width")
        conv: int = Field(4, ge=1, le=MAX_TAPS, description="taps of the causal convolution; 1 = the present only")
        activation: Literal["gelu_tanh", "gelu", "silu"] = Field("gelu_tanh", description="of the gate beside it")
        bias: bool = Field(True, description="biases in the projections from and to the width, and in the convolution")

    emits = schema(
        {
            "decay": Emission("B T E", "gates", "decay of the state before a token's input, mean over channels"),
            "input": Emission("B T E", "gates", "the input gate, mean over channels"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        channels = self.channels = config.channels or width
        if channels % config.heads:
            raise InputError(
                f"rg_lru: {channels} channels are not divisible by heads {config.heads}",
                nearest_divisor(channels, config.heads),
            )
        size = channels // config.heads
        self.linear_y = project_in(width, channels, config.bias)
        self.linear_x = project_in(width, channels, config.bias)
        self.linear_out = project_out(channels, width, config.bias)
        self.conv_1d = nn.Conv1d(channels, channels, config.conv, groups=channels, bias=config.bias)
        decay = torch.empty(channels).uniform_(*DECAYS)
        self.recurrent_param = nn.Parameter((-decay.log() / SHARPNESS).expm1().log())  # softplus gives -log a / c
        blocks = (config.heads, size, size)  # from, to
        self.input_gate_weight = nn.Parameter(torch.randn(blocks).mul_(size**-0.5))
        self.input_gate_bias = nn.Parameter(torch.zeros(config.heads, size))
        self.recurrent_gate_weight = nn.Parameter(torch.randn(blocks).mul_(size**-0.5))
        self.recurrent_gate_bias = nn.Parameter(torch.zeros(config.heads, size))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> RGLRUState:
        sizes = (batch, self.channels), (batch, self.config.conv - 1, self.channels)
        return RGLRUState(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in sizes))

    def forward(self, x: Tensor, state: RGLRUState | None, ctx: Pass) -> tuple[Tensor, RGLRUState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        gate = self._activate(self.linear_y(x))
        u, conv = convolve(self.conv_1d, self.linear_x(x).to(self.state_dtype), state.conv, ctx, silu=False)
        with torch.autocast(x.device.type, enabled=False):
            write = sigmoid(self._blocks(u, self.input_gate_weight, self.input_gate_bias))
            open_gate = sigmoid(self._blocks(u, self.recurrent_gate_weight, self.recurrent_gate_bias))
            log_decay = -SHARPNESS * softplus(self.recurrent_param.to(u.dtype)) * open_gate
            first = (ctx.positions == 0)[..., None]
            fill = torch.where(first, torch.ones_like(u), BoundedSqrt.apply(-torch.expm1(2 * log_decay)))
            decay, value = log_decay.exp().masked_fill(first, 0.0), fill * write * u
            if ctx.mask is not None:  # padding leaves the state unchanged
                real = ctx.mask[..., None]
                decay, value = decay.masked_fill(~real, 1.0), value * real
            ctx.emit("decay", decay)
            ctx.emit("input", write)
            h, scan = linear_scan(decay, value, state.scan)
        return self.linear_out((h * gate).to(gate.dtype)), RGLRUState(scan, conv)

    def _activate(self, y: Tensor) -> Tensor:
        if self.config.activation == "silu":
            return silu(y)
        return gelu(y, approximate="tanh" if self.config.activation == "gelu_tanh" else "none")

    def _blocks(self, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The block-diagonal map of u [B, T, E]."""
        parts = u.unflatten(-1, (self.config.heads, -1))
        return block_linear(parts, weight.to(u.dtype).transpose(1, 2), bias.to(u.dtype)).flatten(-2)


class BoundedSqrt(torch.autograd.Function):
    """sqrt(x) of x >= 0 with a slope of at most STEEPEST: also 0 has a finite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (4 * x).clamp_min(STEEPEST**-2).sqrt()

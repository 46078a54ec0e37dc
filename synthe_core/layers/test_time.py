"""Learning at test time: a memory that takes one gradient step a span of tokens, on its own recall loss."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, Spec
from synthe_core.layers.momentum import Timescale, log_spaced
from synthe_core.layers.projection import matrix_size, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, softplus
from synthe_core.ops.frames import Spans, last_position
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.silu_gate import silu_gate
from synthe_core.ops.span_memory import SpanOutput, SpanState, largest_error, learning_rate, span_memory

EPS = 1e-5
MAX_MOMENTUM = 0.9
INITIAL_RATE = -1.0  # initial logit of a token's rate, σ(-1) = 0.27
GATE_FLOPS = 12  # a head and token: three sigmoids, the error's logarithm, the sums of a span


class SpanSpec(Spec):
    """How a memory learns while the model runs; each switch is an ablation."""

    heads: int = Field(4, ge=1)
    surprise: bool = Field(True, description="raise the rate of a token by the memory's error at it")
    momentum: bool = Field(True, description="momentum of the gradient steps")
    test_time: bool = Field(
        True, description="false: no gradient step for a span, but the delta rule token by token, without momentum"
    )
    timescales: tuple[Timescale, Timescale] = Field(
        (4.0, 256.0), description="initial timescales of the heads' memories in spans, shortest and longest"
    )


class SpanMemory(nn.Module):
    """Queries of one stream, keys, values and gates of another, and the memory between: the operator `span_memory`.

    q = unit(W_q x), [k, v, rate, α, η] = W s, where k and v are brought to length 1 per head; α = σ(.), η = 0.9 σ(.).
    The reading is √V M q, whose channels have unit scale where the memory recalls a value in full, and are near zero
    where nothing is stored.
    """

    emits = schema(
        {
            "rate": Emission("B T H", "gates", "learning rate of the token's gradient, raised where it surprised"),
            "rate_bound": Emission("B T H", "gates", "the largest rate that the token could get, at the largest error"),
            "error": Emission("B T H", "confidence", "relative squared error of the memory's prediction at the token"),
        }
    )

    def __init__(self, config: SpanSpec, size: int, every: int, width: int) -> None:
        super().__init__()
        heads = config.heads
        if size % heads:
            raise InputError(f"test_time: size {size} is not divisible by heads {heads}", nearest_divisor(size, heads))
        self.config, self.every, self.head = config, every, size // heads
        self.has_momentum = config.momentum and config.test_time
        self.features = [size, size, heads, heads, *([heads] if self.has_momentum else [])]
        self.query = project_in(width, size)
        self.write = project_in(width, sum(self.features))
        decay = torch.logit(log_spaced(config.timescales, heads).reciprocal())
        bias = [torch.full((heads,), INITIAL_RATE), decay, torch.zeros(heads)]
        self.bias = nn.Parameter(torch.cat(bias[: len(self.features) - 2]))
        if config.surprise:
            self.sharpness = nn.Parameter(torch.ones(heads).expm1().log())  # softplus gives 1 back
        self.register_buffer("unit", torch.full((self.head,), self.head**-0.5), persistent=False)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> SpanState:
        heads, size = self.config.heads, self.head
        moments = 2 * size if self.config.test_time else size
        shapes = (
            (heads, size, size),
            (heads if self.has_momentum else 0, size, size),
            (heads, size, moments),
            (heads, 3),
        )
        return SpanState(*(torch.zeros(batch, *shape, dtype=dtype, device=device) for shape in shapes))

    def forward(
        self, x: Tensor, written: Tensor, weight: Tensor | None, state: SpanState, spans: Spans, ctx: Pass
    ) -> SpanOutput:
        """Reads for `x` and learns from `written`, both [B, T, D], each token with `weight` [B, T]."""
        dtype = state.memory.dtype
        q, projected = self.query(x), self.write(written)
        if weight is None:
            weight = torch.ones(x.shape[:2], dtype=dtype, device=x.device)
        if ctx.mask is not None:
            weight = weight * ctx.mask
        with torch.autocast(x.device.type, enabled=False):
            k, v, *_ = projected.split(self.features, -1)
            gates = projected[..., sum(self.features[:2]) :].to(dtype) + self.bias.to(dtype)
            rate, decay, *momentum = gates.split(self.config.heads, -1)
            sharpness = softplus(self.sharpness.to(dtype)) if self.config.surprise else None
            eta = MAX_MOMENTUM * sigmoid(momentum[0]) if momentum else None
            q, k, v = (self._unit(part.to(dtype)) for part in (q, k, v))
            output = span_memory(
                *(q, k, v, rate, sharpness, sigmoid(decay), eta, weight, spans.finished, *state),
                self.every,
                not self.config.test_time,
            )
        if ctx.trace is not None:
            ctx.emit("rate", output.rate)
            ctx.emit("rate_bound", weight[..., None] * learning_rate(rate, sharpness, largest_error(k, v)))
            ctx.emit("error", output.error)
        return output._replace(read=self.head**0.5 * output.read.flatten(2))

    def _unit(self, x: Tensor) -> Tensor:
        """x [B, T, H K] by heads, each brought to length 1."""
        x = x.unflatten(-1, (self.config.heads, self.head))
        return rms_norm(x, self.unit.to(x.dtype), EPS / self.head, x.dtype)

    def flops(self, time: int) -> float:
        """Matrices; per token and head 2KV to read, 2KV for the error and 2K(K + V) to learn, in whole frames of a
        span; and at the end of one, a step: 2K²V for the gradient and its five sums and sizes."""
        size, heads = self.head, self.config.heads
        frames = (time - 1) // self.every + 1
        padding = frames * min(self.every, time) / time
        tokens = padding * heads * (8 * size * size + GATE_FLOPS)
        steps = (frames - 1) / time * heads * (2 * size**3 + 10 * size * size)
        return 2.0 * (matrix_size(self.query) + matrix_size(self.write)) + tokens + steps


def surprise_signals(error: Tensor) -> tuple[Tensor, Tensor]:
    """The signals surprise and confidence [B, T] of relative squared errors by head [B, T, H]."""
    surprise = error.mean(-1)
    return surprise, 1 / (1 + surprise)


class TTTState(NamedTuple):
    """The memory's state, and the last position seen [B] (see `last_position`)."""

    memory: SpanState
    last_position: Tensor


class TTT(Learner[TTTState]):
    """y_t = W_out (√V M q_t ⊙ silu(W_g x_t)): a linear memory M per head that learns by gradient descent while it runs.

    Spans have `span` tokens, at absolute positions. Within a span every token reads M as the spans before left it. When
    the span is finished M takes one step down the gradient of ½ Σ_t lr_t ‖M k_t - v_t‖² over its tokens, with momentum
    η and decay α, projected onto the ball ‖M‖_F <= √K; `span_memory` has the equations and the proof of stability. lr_t
    grows with the token's own error before the step (`surprise`).

    x [B, T, D], state M, its momentum and the sums of the current span: 4 K² + 3 numbers a head at most, K = size /
    heads. Publishes causal "surprise" [B, T], the relative squared error ‖M k_t - v_t‖² / ‖v_t‖², mean over heads (1
    for an empty memory), and "confidence" 1 / (1 + surprise).

    Sources: Sun et al. 2024 (TTT-Linear with a mini-batch of `span`), Behrouz et al. 2025 (Titans).
    """

    class Config(SpanSpec, LearnerConfig):
        type: Literal["test_time"] = "test_time"
        size: int | None = Field(None, ge=1, description="channels of all heads; default the width")
        span: int = Field(16, ge=1, description="tokens that the memory learns from at once")

    emits = SpanMemory.emits

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        size = config.size or width
        self.memory = SpanMemory(config, size, config.span, width)
        self.gate = project_in(width, size)
        self.out = project_out(size, width)

    @classmethod
    def publishes(cls, config: Spec) -> tuple[str, ...]:
        return "surprise", "confidence"

    @property
    def alignment(self) -> int | None:
        return int(self.config.span)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> TTTState:
        memory = self.memory.init_state(batch, self.state_dtype, device)
        return TTTState(memory, torch.full((batch,), -1, dtype=self.state_dtype, device=device))

    def forward(self, x: Tensor, state: TTTState | None, ctx: Pass) -> tuple[Tensor, TTTState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        spans = Spans.of(self.config.span, ctx.positions, ctx.mask, state.last_position)
        output = self.memory(x, x, None, state.memory, spans, ctx)
        ctx.signals["surprise"], ctx.signals["confidence"] = surprise_signals(output.error)
        y = self.out(silu_gate(output.read, self.gate(x)))
        last = last_position(ctx.positions, ctx.lengths, state.last_position)
        return y, TTTState(output.state, last)

    def flops(self, time: int) -> float:
        return 2.0 * (matrix_size(self.gate) + matrix_size(self.out)) + self.memory.flops(time)

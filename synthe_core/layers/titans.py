"""Titans: a deep memory, an MLP per head that is trained on every token with momentum and forgetting."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.mamba import convolve
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, silu
from synthe_core.ops.deep_memory import deep_memory
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.short_conv import MAX_TAPS
from synthe_core.ops.silu_gate import silu_gate

EPS = 1e-5
DECAY = -5.0  # initial logit of what is forgotten at a token, σ(-5) = 0.7%


class DeepMemoryState(NamedTuple):
    """first [B, H, K + 1, M] and second [B, H, M + 1, K], the layers' weights less the initial ones; velocity_*, of the
    same shapes; start_*, the weights before the present chunk, less the initial ones; conv [B, J-1, 3HK], the last
    inputs of the convolution of J taps (0 rows without). What a configuration does not have, has no rows."""

    first: Tensor
    second: Tensor
    velocity_first: Tensor
    velocity_second: Tensor
    start_first: Tensor
    start_second: Tensor
    conv: Tensor


class DeepMemoryConfig(LearnerConfig):
    """Keys of the learners whose memory is a network."""

    heads: int = Field(8, ge=1)
    head_size: int | None = Field(None, ge=2, description="size of a head's keys and values; default width / heads")
    layers: Literal[1, 2] = Field(2, description="of the network; 1 is a matrix with a bias")
    expand: int = Field(2, ge=1, description="hidden units of two layers, as a multiple of the head's size")
    chunk: int = Field(16, ge=1, le=256, description="tokens whose gradients are taken at the same weights")
    conv: int = Field(4, ge=0, le=MAX_TAPS, description="taps of the causal convolution of q, k and v; 0 = none")
    rate: float = Field(
        1.0, gt=0, description="greatest learning rate, of the mean over a chunk and the head's channels"
    )
    norm_eps: float = Field(EPS, gt=0, description="what the norm of a head's outputs adds to a mean square")


class DeepMemory(Learner[DeepMemoryState]):
    """The part that `titans` and `ttt` share; `momentum` and `forget` say which gates there are."""

    momentum: bool
    forget: bool
    emits = schema(
        {
            "rate": Emission("B T H", "gates", "learning rate of the token's gradient, of the greatest"),
            "momentum": Emission("B T H", "gates", "what is left of the momentum before a token's gradient"),
            "decay": Emission("B T H", "gates", "what is left of the memory before a token's step"),
        }
    )

    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        if config.head_size is None and width % heads:
            raise InputError(
                f"{config.type}: width {width} is not divisible by heads {heads}", nearest_divisor(width, heads)
            )
        self.head = config.head_size or width // heads
        inner, gates = heads * self.head, 1 + self.momentum + self.forget
        self.features = [3 * inner, gates * heads, inner]
        self.project = project_in(width, sum(self.features))
        self.conv1d = nn.Conv1d(3 * inner, 3 * inner, config.conv, groups=3 * inner) if config.conv else None
        bias = torch.zeros(gates, heads)
        if self.forget:
            bias[-1] = DECAY
        self.gate_bias = nn.Parameter(bias.flatten())
        self.first = nn.Parameter(_initial(heads, self.head, self.hidden))
        self.second = nn.Parameter(_initial(heads, self.hidden, self.head)) if config.layers == 2 else None
        self.scale, self.shift = nn.Parameter(torch.ones(heads, self.head)), nn.Parameter(torch.zeros(heads, self.head))
        self.norm = nn.Parameter(torch.ones(self.head))
        self.register_buffer("ones", torch.ones(self.head), persistent=False)
        self.out = project_out(inner, width)

    @property
    def hidden(self) -> int:
        return int(self.head if self.config.layers == 1 else self.config.expand * self.head)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> DeepMemoryState:
        heads, size = self.config.heads, self.head
        deep, moves = self.config.layers == 2, self.momentum
        first, second = (size + 1, self.hidden), (self.hidden + 1 if deep else 0, size)
        nothing = ((0, self.hidden), (0, size))
        sizes = (first, second, *((first, second) if moves else nothing), first, second)
        zeros = [torch.zeros(batch, heads, *each, dtype=self.state_dtype, device=device) for each in sizes]
        conv = torch.zeros(batch, max(self.config.conv, 1) - 1, self.features[0], dtype=self.state_dtype, device=device)
        return DeepMemoryState._make([*zeros, conv])

    def forward(self, x: Tensor, state: DeepMemoryState | None, ctx: Pass) -> tuple[Tensor, DeepMemoryState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        dtype, heads = self.state_dtype, self.config.heads
        qkv, gates, gate = self.project(x).split(self.features, dim=-1)
        qkv, conv = qkv.to(dtype), state.conv
        if self.conv1d is None:
            qkv = silu(qkv)
        else:
            qkv, conv = convolve(self.conv1d, qkv, conv, ctx)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = qkv.unflatten(-1, (3, heads, self.head)).unbind(2)
            q, k = (rms_norm(part, self.ones.to(dtype), EPS, dtype) for part in (q, k))
            rate, momentum, decay = self._gates(gates.to(dtype), ctx)
            o, memory = self._learn(q, k, v, rate, momentum, decay, state, ctx)
            y = rms_norm(o, self.norm, self.config.norm_eps, dtype).flatten(2)
            y = silu_gate(y, gate)
        return self.out(y), DeepMemoryState._make([*memory, conv])

    def _gates(self, logits: Tensor, ctx: Pass) -> tuple[Tensor, Tensor, Tensor]:
        """θ, η and α [B, T, H]; those that a configuration does not have are 0."""
        parts = sigmoid(logits + self.gate_bias.to(logits.dtype)).split(self.config.heads, -1)
        rate, none = parts[0], torch.zeros_like(parts[0])
        momentum, decay = parts[1] if self.momentum else none, parts[-1] if self.forget else none
        if ctx.trace is not None:
            ctx.emit("rate", rate)
            if self.momentum:
                ctx.emit("momentum", momentum)
            if self.forget:
                ctx.emit("decay", 1 - decay)
        return rate * (self.config.rate / (self.config.chunk * self.head)), momentum, decay

    def _learn(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rate: Tensor,
        momentum: Tensor,
        decay: Tensor,
        state: DeepMemoryState,
        ctx: Pass,
    ) -> tuple[Tensor, list[Tensor]]:
        """What is read, and the first six tensors of the state."""
        dtype = q.dtype
        begun = [self.first.to(dtype), None if self.second is None else self.second.to(dtype)]
        parts: list[Tensor | None] = []
        for place, (change, initial) in enumerate(zip(state[:6], [*begun, None, None, *begun], strict=True)):
            if place % 2 and self.second is None:
                parts.append(None)
            elif initial is not None:
                parts.append(initial + change)
            else:
                parts.append(change if self.momentum else torch.zeros_like(state[place - 2]))
        real = torch.ones_like(ctx.positions, dtype=torch.bool) if ctx.mask is None else ctx.mask
        norms = (self.scale.to(dtype), self.shift.to(dtype))
        o, *after = deep_memory(q, k, v, rate, momentum, decay, *norms, ctx.positions, real, *parts, self.config.chunk)
        state_after = []
        for place, (value, before) in enumerate(zip(after, state[:6], strict=True)):
            moved, initial = place in (2, 3), begun[place % 2]
            if value is None or initial is None or (moved and not self.momentum):
                state_after.append(before)
            else:
                state_after.append(value if moved else value - initial)
        return o, state_after

    @property
    def alignment(self) -> int | None:
        return None  # a chunk that is cut is computed in two parts

    def flops(self, time: int) -> float:
        """The matrices, and for every weight of the memory 10 operations: 2 to predict, 2 for its gradient, 4 to step,
        2 to read; of the second layer's 2 more for the first's gradient. The count of the matrices has the first 2."""
        heads, size, hidden = self.config.heads, self.head, self.hidden
        first, second = (size + 1) * hidden, (hidden + 1) * size if self.config.layers == 2 else 0
        return super().flops(time) + float(heads * (8 * first + 10 * second))


def _initial(heads: int, inputs: int, outputs: int) -> Tensor:
    """Matrices [H, inputs + 1, outputs] that are normal with standard deviation inputs^-1/2, and biases of zero."""
    weights = torch.empty(heads, inputs + 1, outputs).normal_(std=inputs**-0.5)
    weights[:, -1] = 0
    return weights


class Titans(DeepMemory):
    """W_t = (1 - α_t) W_{t-1} + U_t, U_t = η_t U_{t-1} - θ_t ∇ ½ ‖f(W'; k_t) - v_t‖², y_t = W_out (norm(f(W_t; q_t)) ⊙
    silu(g_t)), head by head: f is a network whose weights are the memory.

    x [B, T, D]. One projection of x gives q, k, v [B, T, H, K], the output gate g [B, T, HK], and per head the logits
    of the learning rate θ = `rate` σ(.) / (chunk K), the momentum η = σ(.) and the forgetting α = σ(.), initially
    0.7%. q, k and v pass a causal convolution of `conv` taps and SiLU; q and k are then normalised to a mean square of
    1. f(W; x) = x + γ ⊙ norm(net(W; x)) + β with net of one or two `layers`, W₂ silu(W₁ x), and biases; `deep_memory`
    has the equations. The gradient, the token's surprise, is at W', the weights before its chunk of `chunk` tokens at
    absolute positions: that makes a chunk a few matrix products. W begins at learned values, and the outer gradient
    flows through all steps. The memory is a layer: put attention beside it as a layer of the block.

    Sources: Behrouz et al. 2025, "Titans: learning to memorize at test time"; the norm and the residual around the
    network: Sun et al. 2024.
    """

    class Config(DeepMemoryConfig):
        type: Literal["titans"] = "titans"
        momentum: bool = Field(True, description="a momentum of the steps")
        forget: bool = Field(True, description="a decay of the weights")

    def __init__(self, config: Config, width: int) -> None:
        self.momentum, self.forget = config.momentum, config.forget
        super().__init__(config, width)

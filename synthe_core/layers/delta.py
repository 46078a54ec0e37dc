"""The (gated) delta rule as a learner: an associative memory that replaces the value at a key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, sigmoid_gate, silu, softplus
from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.delta_rule_error import delta_rule_error
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.short_conv import MAX_TAPS, short_conv, with_history
from synthe_core.ops.silu_gate import silu_gate

EPS = 1e-5
ENERGY_EPS = 1e-6  # added to a value's mean square, which errors are divided by
Rule = Callable[..., Any]


class DeltaState(NamedTuple):
    """memory [B, H, K, V]; conv [B, J-1, GK + n(GK + HV)], the last inputs of the convolution of J taps (0 rows
    without); n is `householder`, G the heads of queries and keys, H those of values."""

    memory: Tensor
    conv: Tensor


class Delta(Learner[DeltaState]):
    """S_t = α_t S_{t-1} (I - β_t k_t k_tᵀ) + β_t v_t k_tᵀ, o_t = S_t q_t, y_t = W_out (norm(o_t) ⊙ silu(g_t)).

    x [B, T, D]. One projection of x gives q, k [B, T, G, K], v, g [B, T, H, V] and per value head the logits of β and
    α; with more value heads than heads, H / G of them in a row read one head of q and k. q, k and v pass a causal
    convolution of `conv` taps and SiLU; q and k are then brought to length 1 (q to `query_scale`), so that β = 1
    replaces the value stored at k and β up to 2 reflects it. α_t = exp(-A softplus(a_t + b)), A and b learned per
    value head, initially A in [1, 16] and softplus(b) in [0.001, 0.1] as in Mamba-2. The memory is HKV numbers a row.

    `clip` c bounds every written value, ‖v_t‖ <= c. The whole update β_t (v_t - S k_t) also contains what the memory
    recalls; a bound on that would make each token depend on the one before it, which no parallel form computes. `scale`
    multiplies y.

    With `householder` n > 1 a token takes n such steps, each with its own k, v and β: it decays the memory once, before
    the first, and reads it once, after the last. One step with β = 2 is a reflection, two are any rotation of a plane.

    With `signals` it publishes two causal signals [B, T] that carry gradient: "surprise", the squared error of the
    memory's prediction, ‖v_t - α_t S_{t-1} k_t‖² / ‖v_t‖², both summed over heads and steps (1 for an empty memory, 0
    for a perfect prediction, above 1 for a wrong one); and "confidence", 1 / (1 + surprise), in (0, 1]. Padding: 0 and
    1.

    Sources: Schlag et al. 2021; Yang et al. 2024 (DeltaNet), 2025 (Gated DeltaNet); Grazzi et al. 2025 (β up to 2);
    Siems et al. 2025 (DeltaProduct: several steps).
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["delta"] = "delta"
        heads: int = Field(8, ge=1)
        key_size: int | None = Field(None, ge=1, description="size of a head's keys; default width / heads")
        value_size: int | None = Field(None, ge=1, description="size of a head's values; default width / heads")
        value_heads: int | None = Field(None, ge=1, description="heads of values; default as many as heads")
        conv: int | None = Field(4, ge=0, le=MAX_TAPS, description="taps of the causal convolution; 0 = none")
        conv_bias: bool = Field(False, description="a bias in the convolution")
        gate: bool = Field(True, description="an output gate per channel")
        gate_function: Literal["silu", "sigmoid"] = Field("silu", description="the output gate's function")
        decay: bool = Field(True, description="a data-dependent decay of the memory per head")
        beta_range: tuple[float, float] = Field((0.0, 1.0), description="of the write strength; up to [0, 2]")
        householder: int = Field(1, ge=1, le=4, description="delta steps a token; each is a generalised reflection")
        overwrite: bool = Field(True, description="false adds instead of replacing: gated linear attention")
        clip: float | None = Field(None, gt=0, description="largest length of a written value; null = any")
        scale: float = Field(1.0, gt=0, description="what the output is multiplied by")
        query_scale: float = Field(1.0, gt=0, description="length of the queries")
        norm_eps: float = Field(EPS, gt=0, description="what the norm of a head's outputs adds to a mean square")
        key_norm_eps: float = Field(EPS, gt=0, description="added to the squared length of queries and keys")
        signals: bool = Field(
            False, description="publish surprise and confidence: how well the memory predicts a value"
        )

    emits = schema(
        {
            "beta": Emission("B T H", "gates", "write strength: how much of the value stored at the key is replaced"),
            "decay": Emission("B T H", "gates", "decay of the memory before a token's write"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        check_head_sizes(config, width)
        low, high = config.beta_range
        if not 0 <= low < high <= 2:
            raise InputError(
                f"{config.type}: beta_range must rise within [0, 2], not [{low:g}, {high:g}]",
                "beyond 2 the memory grows without bound",
            )
        if config.signals and not config.overwrite:
            raise InputError(f"{config.type}: only a memory that overwrites predicts values", "leave out `signals`")
        values_of = self.value_heads = config.value_heads or heads
        if values_of % heads:
            raise InputError(
                f"{config.type}: value_heads {values_of} is not a multiple of heads {heads}",
                nearest_divisor(values_of, heads),
            )
        if config.conv_bias and (config.conv or 0) < 2:
            raise InputError(f"{config.type}: conv_bias without a convolution", "leave it out, or set conv")
        self.key = config.key_size or width // heads
        self.value = config.value_size or width // heads
        self.taps = max(config.conv or 0, 1)
        steps, values = config.householder, values_of * self.value
        mixed = [(1 + steps) * heads * self.key, steps * values]
        self.features = [*mixed, values if config.gate else 0, steps * values_of, values_of if config.decay else 0]
        self.project = project_in(width, sum(self.features))
        self.out = project_out(values, width)
        self.norm = nn.Parameter(torch.ones(self.value))
        self.register_buffer("unit", torch.full((self.key,), self.key**-0.5), persistent=False)
        if self.taps > 1:
            # Uniform, as torch's convolutions: some channels weight the present, some the tokens before.
            self.conv = nn.Parameter(torch.empty(sum(mixed), self.taps).uniform_(-1, 1).mul_(self.taps**-0.5))
        self.conv_bias = nn.Parameter(torch.zeros(sum(mixed))) if config.conv_bias else None
        if config.decay:
            step = torch.empty(values_of).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.A_log = nn.Parameter(torch.empty(values_of).uniform_(1, 16).log())
            self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus gives `step` back

    @classmethod
    def publishes(cls, config: Config) -> tuple[str, ...]:
        return ("surprise", "confidence") if config.signals else ()

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> DeltaState:
        memory = (batch, self.value_heads, self.key, self.value)
        conv = (batch, self.taps - 1, sum(self.features[:2]))
        return DeltaState(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in (memory, conv)))

    def forward(
        self, x: Tensor, state: DeltaState | None, ctx: Pass, rule: Rule | None = None
    ) -> tuple[Tensor, DeltaState]:
        """`rule` takes the place of the operator of the memory, whose arguments it is given."""
        state = state or self.init_state(x.shape[0], device=x.device)
        projected = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            qk, v, gate, beta, decay = projected.split(self.features, dim=-1)
            qk, v, conv = self._convolve(qk.to(state.conv.dtype), v.to(state.conv.dtype), state.conv, ctx)
            steps, heads = self.config.householder, self.config.heads
            q, k = self._unit(qk.unflatten(-1, (1 + steps, heads, self.key))).split([1, steps], 2)
            v = v.unflatten(-1, (steps, self.value_heads, self.value))
            if self.config.clip is not None:
                v = v * (self.config.clip / v.norm(dim=-1, keepdim=True).clamp_min(self.config.clip))
            write, log_decay = self._gates(beta.to(v.dtype), decay.to(v.dtype), ctx)
            rule = rule or self._rule()
            inputs = self._unroll_steps(q, k, v, write, log_decay)
            o, memory, *error = rule(*inputs, state.memory)
            if self.config.signals:
                self._publish(error[0], inputs[2], ctx)
            y = self._read(o.unflatten(1, (-1, steps))[:, :, -1]).flatten(2)
            if self.config.gate:
                y = silu_gate(y, gate) if self.config.gate_function == "silu" else sigmoid_gate(y, gate)
        return self.out(y), DeltaState(memory, conv)

    def _rule(self) -> Rule:
        if self.config.signals:
            return delta_rule_error
        return delta_rule if self.config.overwrite else linear_attention

    def _convolve(self, qk: Tensor, v: Tensor, before: Tensor, ctx: Pass) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values after the convolution and SiLU, and the inputs that its next call needs."""
        if self.taps == 1:
            return silu(qk), silu(v), before
        mixed, after, sizes = [], [], self.features[:2]
        biases = (None, None) if self.conv_bias is None else self.conv_bias.split(sizes)
        parts = zip((qk, v), self.conv.split(sizes), before.split(sizes, -1), biases, strict=True)
        for part, weight, past, bias in parts:
            y, last = short_conv(part, weight, past, bias=bias)
            mixed.append(y)
            after.append(last if ctx.lengths is None else ctx.last(with_history(part, past, self.taps), self.taps - 1))
        return mixed[0], mixed[1], torch.cat(after, -1)

    def _publish(self, error: Tensor, v: Tensor, ctx: Pass) -> None:
        """The signals, of errors and values [B, nT, H, V]."""
        error_energy, value_energy = (
            x.square().mean((-2, -1)).unflatten(1, (-1, self.config.householder)).mean(-1) for x in (error, v)
        )
        surprise = error_energy / (value_energy + ENERGY_EPS)
        if ctx.mask is not None:
            surprise = surprise * ctx.mask
        ctx.signals["surprise"], ctx.signals["confidence"] = surprise, 1 / (1 + surprise)

    def _unit(self, x: Tensor) -> Tensor:
        """x / ‖x‖ over the last axis, as a root-mean-square norm with every weight K^-1/2."""
        return rms_norm(x, self.unit, self.config.key_norm_eps / self.key, x.dtype)

    def _read(self, o: Tensor) -> Tensor:
        """What is read, o [B, T, H, V] with queries of length 1, after the norm and times `scale`.

        norm(s o) with eps is norm(o) with eps / s²: a query's length costs nothing.
        """
        eps = self.config.norm_eps / self.config.query_scale**2
        return rms_norm(o, self.config.scale * self.norm, eps, o.dtype)

    def _unroll_steps(
        self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """The rule's inputs with the n steps of a token one after another: [B, nT, ...].

        q [B, T, 1, G, K] is repeated at each step, k [B, T, n, G, K], v [B, T, n, H, V] and β [B, T, nH] have one for
        each, and the decay [B, T, H] applies at the first.
        """
        steps = self.config.householder
        if log_decay is not None:
            log_decay = F.pad(log_decay[:, :, None], (0, 0, 0, steps - 1)).flatten(1, 2)
        each = (q.expand(-1, -1, steps, -1, -1), k, v, beta.unflatten(-1, (steps, -1)))
        q, k, v, beta = (x.flatten(1, 2) for x in each)
        return q, k, v, beta, log_decay

    def _gates(self, beta: Tensor, decay: Tensor, ctx: Pass) -> tuple[Tensor, Tensor | None]:
        """β [B, T, nH] and log α [B, T, H]; at padding they are 0, which leaves the memory unchanged."""
        low, high = self.config.beta_range
        beta = low + (high - low) * sigmoid(beta)
        log_decay = -self.A_log.exp() * softplus(decay + self.dt_bias) if self.config.decay else None
        if ctx.mask is not None:
            beta = beta * ctx.mask[..., None]
            log_decay = None if log_decay is None else log_decay * ctx.mask[..., None]
        ctx.emit("beta", beta)
        if ctx.trace is not None and log_decay is not None:
            ctx.emit("decay", log_decay.exp())
        return beta, log_decay

    def flops(self, time: int) -> float:
        """The matrices, and per head KV multiplications to decay and, at each of the n steps, 2KV operations to write,
        where the memory is overwritten 2KV to recall, and 2KV to read (only the last step's reading is used)."""
        config = self.config
        passes = config.householder * (6 if config.overwrite else 4) + config.decay
        return super().flops(time) + float(passes * self.value_heads * self.key * self.value)

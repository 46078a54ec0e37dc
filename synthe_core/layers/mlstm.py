"""xLSTM's matrix memory: keys, values and exponential gates."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, sigmoid_gate
from synthe_core.ops.mlstm import EMPTY_SCALE, mlstm
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.short_conv import MAX_TAPS, short_conv, with_history
from synthe_core.ops.silu_gate import silu_gate

EPS = 1e-6


class MLSTMState(NamedTuple):
    """memory [B, H, K, V + 1], the matrix and its normaliser over exp(scale); scale [B, H]; conv [B, J-1, 2HK], the
    last inputs of the convolution of J taps (0 rows without)."""

    memory: Tensor
    scale: Tensor
    conv: Tensor


class MLSTM(Learner[MLSTMState]):
    """C_t = f_t C_{t-1} + i_t v_t k_tᵀ, n_t = f_t n_{t-1} + i_t k_t, h_t = C_t q_t / max(|n_t·q_t|, 1) and
    y_t = W_out (norm(h_t) ⊙ σ(o_t)), with i_t = exp(ĩ_t) and f_t = σ(f̃_t) (or exp(f̃_t)).

    x [B, T, D]. One projection of x gives q, k [B, T, H, K], v, o [B, T, H, V] and per head the gates' ĩ and f̃, whose
    weights start at zero; the cap c bounds both gates to c tanh(·/c). q and k pass a causal convolution of `conv` taps
    and SiLU. Keys are divided by √K, here through the input gate. norm is per head, root-mean-square with V weights for
    all heads or a layer norm with weights for each. The memory is HK(V + 1) numbers a row and a scale per head; every
    gate of any size is exact, see the operator.

    Sources: Beck et al. 2024 (xLSTM: the cell, the convolution, input bias 0); Beck et al. 2025 (xLSTM-7B: sizes, cap
    15, gates without weights at first, no convolution, layer norm; their input bias is -10, their forget bias 3 to 6).
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["mlstm"] = "mlstm"
        heads: int = Field(4, ge=1)
        key_size: int | None = Field(None, ge=1, description="size of a head's keys; default half of width / heads")
        value_size: int | None = Field(None, ge=1, description="size of a head's values; default width / heads")
        conv: int = Field(4, ge=0, le=MAX_TAPS, description="taps of the causal convolution of q and k; 0 = none")
        forget: Literal["sigmoid", "exponential"] = Field("sigmoid", description="the forget gate's function")
        forget_bias: float | tuple[float, float] = Field(
            1.0,
            description="the forget gate's initial bias; a pair is spread over the heads, from the one to the other",
        )
        input_bias: float = Field(0.0, description="the input gate's initial bias")
        cap: float | None = Field(15.0, gt=0, description="bounds the gates' logits smoothly; null = no bound")
        output: Literal["sigmoid", "silu"] = Field("sigmoid", description="the output gate's function")
        norm: Literal["rms", "layer"] = Field(
            "rms", description="norm of a head's outputs; layer: weights for each head"
        )
        norm_eps: float = Field(EPS, gt=0, description="what that norm adds to a mean square or variance")

    emits = schema(
        {
            "log_input": Emission("B T H", "gates", "logarithm of the input gate"),
            "log_forget": Emission("B T H", "gates", "logarithm of the forget gate; 0 keeps all"),
            "output": Emission("B T H", "gates", "the output gate, mean over a head's channels"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        check_head_sizes(config, width)
        self.key = config.key_size or max(width // heads // 2, 1)
        self.value = config.value_size or width // heads
        keys, values = 2 * heads * self.key, heads * self.value
        self.features = [keys, values, values, heads, heads]
        self.taps = max(config.conv, 1)
        self.project = project_in(width, sum(self.features))
        self.out = project_out(values, width)
        self.norm = nn.Parameter(torch.ones(self.value if config.norm == "rms" else (heads, self.value)))
        with torch.no_grad():
            self.project.weight[-2 * heads :] = 0
        first, last = config.forget_bias if isinstance(config.forget_bias, tuple) else (config.forget_bias,) * 2
        self.input_bias = nn.Parameter(torch.full((heads,), config.input_bias))
        self.forget_bias = nn.Parameter(torch.linspace(first, last, heads))
        if self.taps > 1:
            self.conv = nn.Parameter(torch.empty(keys, self.taps).uniform_(-1, 1).mul_(self.taps**-0.5))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> MLSTMState:
        sizes = (batch, self.config.heads, self.key, self.value + 1), (batch, self.taps - 1, self.features[0])
        memory, conv = (torch.zeros(size, dtype=self.state_dtype, device=device) for size in sizes)
        return MLSTMState(memory, torch.full_like(memory[:, :, 0, 0], EMPTY_SCALE), conv)

    def forward(self, x: Tensor, state: MLSTMState | None, ctx: Pass) -> tuple[Tensor, MLSTMState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        projected = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            qk, v, gate, write, keep = projected.split(self.features, dim=-1)
            qk, conv = self._convolve(qk.to(state.conv.dtype), state.conv, ctx)
            q, k = qk.unflatten(-1, (2, self.config.heads, self.key)).unbind(2)
            v = v.to(q.dtype).unflatten(-1, (self.config.heads, self.value))
            log_input, log_forget = self._gates(write.to(q.dtype), keep.to(q.dtype), ctx)
            h, memory, scale = mlstm(q, k, v, log_input, log_forget, state.memory, state.scale)
            if ctx.trace is not None:
                ctx.emit("output", sigmoid(gate.to(h.dtype)).unflatten(-1, h.shape[2:]).mean(-1))
            open_gate = silu_gate if self.config.output == "silu" else sigmoid_gate
            y = open_gate(self._normed(h).flatten(2), gate)
        return self.out(y), MLSTMState(memory, scale, conv)

    def _normed(self, h: Tensor) -> Tensor:
        """h [B, T, H, V] at unit scale, head by head."""
        eps, weight = self.config.norm_eps, self.norm.to(h.dtype)
        if self.config.norm == "rms":
            return rms_norm(h, weight, eps, h.dtype)
        return F.layer_norm(h, h.shape[-1:], eps=eps) * weight

    def _convolve(self, qk: Tensor, before: Tensor, ctx: Pass) -> tuple[Tensor, Tensor]:
        """Queries and keys after the convolution and SiLU, and the inputs that its next call needs."""
        if self.taps == 1:
            return qk, before
        mixed, after = short_conv(qk, self.conv, before)
        return mixed, after if ctx.lengths is None else ctx.last(with_history(qk, before, self.taps), self.taps - 1)

    def _gates(self, write: Tensor, keep: Tensor, ctx: Pass) -> tuple[Tensor, Tensor]:
        """log i and log f [B, T, H]; at padding -inf and 0, which leaves the memory unchanged."""
        log_input, keep = self._capped(write + self.input_bias), self._capped(keep + self.forget_bias)
        log_forget = F.logsigmoid(keep) if self.config.forget == "sigmoid" else keep
        ctx.emit("log_input", log_input)
        ctx.emit("log_forget", log_forget)
        log_input = log_input - 0.5 * math.log(self.key)
        if ctx.mask is not None:
            padding = ~ctx.mask[..., None]
            log_input, log_forget = log_input.masked_fill(padding, -math.inf), log_forget.masked_fill(padding, 0)
        return log_input, log_forget

    def _capped(self, logit: Tensor) -> Tensor:
        cap = self.config.cap
        return logit if cap is None else cap * torch.tanh(logit / cap)

    def flops(self, time: int) -> float:
        """The matrices, and per head K(V + 1) multiplications to forget, 2K(V + 1) operations to write and to read."""
        return super().flops(time) + 5.0 * self.config.heads * self.key * (self.value + 1)

"""HGRN2: a gated linear recurrence whose state is a matrix, and whose input gate is what the forget gate leaves."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, silu
from synthe_core.ops.gated_linear_attention import gated_linear_attention
from synthe_core.ops.rms_norm import rms_norm


class HGRN2(Learner[Tensor]):
    """S_t = Diag(f_t) S_{t-1} + (1 - f_t) i_tᵀ, o_t = S_tᵀ q_t / √K, y_t = W_out norm(o_t), head by head.

    x [B, T, D]. One projection of x gives q and the forget gate's logits z [B, T, H, K], and the input i [B, T, H, V];
    q passes SiLU. f_t = β + (1 - β) σ(z_t), where β is the `lower_bound`, learned for every channel as the sigmoid of a
    logit (0: none). norm is root-mean-square over the channels of all heads. The state is S, HKV numbers a row.

    In the paper all layers share one cumulative softmax of bounds, so that upper layers forget less. A learner knows no
    other layer: give upper blocks a larger `lower_bound`, and each learns its own from there.

    Source: Qin et al. 2024, "HGRN2: gated linear RNNs with state expansion".
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["hgrn2"] = "hgrn2"
        heads: int = Field(4, ge=1)
        key_size: int | None = Field(None, ge=1, description="size of a head's gates; default width / heads")
        value_size: int | None = Field(None, ge=1, description="size of a head's inputs; default width / heads")
        lower_bound: float = Field(0.0, ge=0, lt=1, description="least forget gate, initially; learned unless it is 0")
        norm_eps: float = Field(1e-5, gt=0, description="what the norm adds to a mean square")

    emits = schema(
        {"decay": Emission("B T H E", "gates", "decay of the memory before a token's write, mean over channels")}
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        check_head_sizes(config, width)
        self.key = config.key_size or width // heads
        self.value = config.value_size or width // heads
        self.features = [heads * self.key, heads * self.key, heads * self.value]
        self.project = project_in(width, sum(self.features))
        self.out = project_out(heads * self.value, width)
        self.norm = nn.Parameter(torch.ones(heads * self.value))
        self.bound = None
        if config.lower_bound:
            logit = math.log(config.lower_bound / (1 - config.lower_bound))
            self.bound = nn.Parameter(torch.full((heads * self.key,), logit))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(batch, self.config.heads, self.key, self.value, dtype=self.state_dtype, device=device)

    def forward(self, x: Tensor, state: Tensor | None, ctx: Pass) -> tuple[Tensor, Tensor]:
        state = self.init_state(x.shape[0], device=x.device) if state is None else state
        dtype = self.state_dtype
        projected = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            q, z, i = (
                part.to(dtype).unflatten(-1, (self.config.heads, -1)) for part in projected.split(self.features, -1)
            )
            k, log_decay = self._gates(z)
            if ctx.trace is not None:
                ctx.emit("decay", log_decay.exp())
            if ctx.mask is not None:  # padding leaves the memory unchanged
                real = ctx.mask[..., None, None]
                k, log_decay = k * real, log_decay * real
            o, memory = gated_linear_attention(silu(q), k, i, log_decay, state)
            eps = self.config.norm_eps * self.key  # that of o / √K
            y = rms_norm(o.flatten(2), self.norm, eps, dtype).to(projected.dtype)
        return self.out(y), memory

    def _gates(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """1 - f and log f of the logits z [B, T, H, K], each without a difference of numbers near 1."""
        if self.bound is None:
            return sigmoid(-z), F.logsigmoid(z)
        bound = self.bound.to(z.dtype).unflatten(0, z.shape[2:])
        return sigmoid(-bound) * sigmoid(-z), torch.logaddexp(
            F.logsigmoid(bound), F.logsigmoid(-bound) + F.logsigmoid(z)
        )

    def flops(self, time: int) -> float:
        """The matrices, and per head KV multiplications to decay, 2KV operations to write and to read."""
        return super().flops(time) + 5.0 * self.config.heads * self.key * self.value

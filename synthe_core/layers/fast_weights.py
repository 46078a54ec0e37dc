"""Fast weights: a matrix per head that every token reads, decays and writes to."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.rms_norm import rms_norm

EPS = 1e-5


class FastWeightsState(NamedTuple):
    """memory [B, H, K, V]: the fast weights M, transposed."""

    memory: Tensor


class FastWeights(Learner[FastWeightsState]):
    """o_t = M_{t-1} q_t, then M_t = λ M_{t-1} + η σ(g_t) v_t k_tᵀ; y_t = W_out o_t.

    x [B, T, D]. One projection of x gives q, k [B, T, H, K], v [B, T, H, V] and per head the gate's g. A token reads
    what those before it wrote, so the first reads nothing. λ = decay and η = strength are fixed. With `qk_norm` keys
    have length 1, so that ‖ΔM‖ <= η ‖v‖, and queries length √K; without, both are as projected. The gradient flows
    through the writes. Each row has its own memory of HKV numbers.

    Sources: Schmidhuber 1992 (outer products written by a slow network); Ba et al. 2016 (decay 0.95); TITAN Synapse
    (strength 0.1 times a gate per head, read before write; no `qk_norm`).
    """

    class Config(LearnerConfig):
        type: Literal["fast_weights"] = "fast_weights"
        heads: int = Field(8, ge=1)
        key_size: int | None = Field(None, ge=1, description="size of a head's keys; default width / heads")
        value_size: int | None = Field(None, ge=1, description="size of a head's values; default width / heads")
        decay: float = Field(0.95, gt=0, le=1, description="decay of the memory per token")
        strength: float = Field(0.1, gt=0, description="of a write whose gate is fully open")
        qk_norm: bool = Field(True, description="bring keys to length 1 and queries to length sqrt(key_size)")

    emits = schema(
        {
            "write": Emission("B T H", "gates", "write strength of each head"),
            "read": Emission("B T H E", "memory", "reading of the memory, root mean square over channels", "rms"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        check_head_sizes(config, width)
        self.key = config.key_size or width // heads
        self.value = config.value_size or width // heads
        self.features = [heads * self.key, heads * self.key, heads * self.value, heads]
        self.project = project_in(width, sum(self.features))
        self.out = project_out(heads * self.value, width)
        self.register_buffer("ones", torch.ones(self.key), persistent=False)

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> FastWeightsState:
        size = (batch, self.config.heads, self.key, self.value)
        return FastWeightsState(torch.zeros(size, dtype=self.state_dtype, device=device))

    def forward(self, x: Tensor, state: FastWeightsState | None, ctx: Pass) -> tuple[Tensor, FastWeightsState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        projected = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            parts = projected.to(state.memory.dtype).split(self.features, dim=-1)
            q, k, v = (part.unflatten(-1, (self.config.heads, -1)) for part in parts[:3])
            if self.config.qk_norm:
                q = rms_norm(q, self.ones, EPS, q.dtype)
                k = rms_norm(k, self.ones * self.key**-0.5, EPS, k.dtype)
            write = self.config.strength * sigmoid(parts[3])
            log_decay = torch.full_like(write, math.log(self.config.decay))
            if ctx.mask is not None:
                write, log_decay = write * ctx.mask[..., None], log_decay * ctx.mask[..., None]
            ctx.emit("write", write)
            # The operator reads after it writes: token t's query, moved to t - 1, reads what the tokens before t wrote.
            first = torch.einsum("bhk,bhkv->bhv", q[:, 0], state.memory)
            ahead = F.pad(q[:, 1:], (0, 0, 0, 0, 0, 1))
            later, memory = linear_attention(ahead, k, v, write, log_decay, state.memory)
            read = torch.cat([first[:, None], later[:, :-1]], 1)
            ctx.emit("read", read)
        return self.out(read.flatten(2).to(projected.dtype)), FastWeightsState(memory)

    @property
    def alignment(self) -> int | None:
        return None  # the first token of a pass reads the memory, others what the operator reads

    def flops(self, time: int) -> float:
        """The matrices, and per head KV multiplications to decay, 2KV operations to write and to read."""
        return super().flops(time) + 5.0 * self.config.heads * self.key * self.value

"""Gated DeltaNet-2: the delta rule whose erasing and writing have gates of their own, channel by channel."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.layers.kda import l2_norm
from synthe_core.layers.learner import Learner, LearnerConfig, Pass, check_head_sizes
from synthe_core.layers.mamba import convolve, initial_dt_bias
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid, silu, softplus
from synthe_core.ops.generalized_delta_rule import generalized_delta_rule
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.short_conv import MAX_TAPS

EPS = 1e-5


class GatedDelta2State(NamedTuple):
    """memory [B, H, K, V]; conv [B, J-1, H(2K + V)], the last inputs of the convolution of J taps (0 rows without)."""

    memory: Tensor
    conv: Tensor


class GatedDelta2(Learner[GatedDelta2State]):
    """S_t = (I - k_t (b_t ⊙ k_t)ᵀ) Diag(α_t) S_{t-1} + k_t (w_t ⊙ v_t)ᵀ, o_t = S_tᵀ q_t and
    y_t = W_out (norm(o_t) ⊙ σ(g_t)), head by head.

    x [B, T, D]. One projection of x gives q, k [B, T, H, K], v [B, T, H, V], the logits of the erase gate b [B, T, H,
    K] and of the write gate w [B, T, H, V], and two vectors of `rank` numbers, from which second maps make the decays'
    logits f [B, T, H, K] and the output gate g [B, T, H, V]. q, k and v pass a causal convolution of `conv` taps and
    SiLU; q and k are then brought to length 1. b = `erase_max` σ(.), w = σ(.); α_t = exp(-A softplus(f_t + d)), A
    learned per head and d per channel, as in `kda`, which this is where all b and w of a head are one number. The
    memory is HKV numbers a row.

    The eigenvalues of I - k (b ⊙ k)ᵀ are 1 and, once, 1 - Σ b k², which is at least 1 - `erase_max`. The map is not
    symmetric unless b is equal over channels: it may lengthen a vector where its eigenvalues do not, so that products
    of such maps have no bound but what α gives them.

    Sources: NVIDIA 2026, "Gated DeltaNet-2: decoupling erase and write in linear attention", the layer as in fla
    (`gdn2`); Grazzi et al. 2025 (b up to 2).
    """

    composable = True

    class Config(LearnerConfig):
        type: Literal["gated_delta_2"] = "gated_delta_2"
        heads: int = Field(8, ge=1)
        key_size: int | None = Field(None, ge=1, description="size of a head's keys; default width / heads")
        value_size: int | None = Field(None, ge=1, description="size of a head's values; default width / heads")
        conv: int = Field(4, ge=0, le=MAX_TAPS, description="taps of the causal convolution; 0 = none")
        conv_bias: bool = Field(False, description="a bias in the convolution")
        rank: int | None = Field(
            None, ge=1, description="of the maps that make decays and gate; default the size of a head's values"
        )
        erase_max: float = Field(1.0, gt=0, le=2, description="the largest value of an erase gate")
        norm_eps: float = Field(EPS, gt=0, description="what the norm of a head's outputs adds to a mean square")
        key_norm_eps: float = Field(EPS, gt=0, description="added to the squared length of queries and keys")

    emits = schema(
        {
            "erase": Emission("B T H E", "gates", "erase gate: what is removed at the key, mean over channels"),
            "write": Emission("B T H E", "gates", "share of the value that is written, mean over channels"),
            "decay": Emission("B T H E", "gates", "decay of the memory before a token's write, mean over channels"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads = config.heads
        check_head_sizes(config, width)
        self.key = config.key_size or width // heads
        self.value = config.value_size or width // heads
        keys, values, rank = heads * self.key, heads * self.value, config.rank or self.value
        mixed = 2 * keys + values
        self.features = [mixed, keys, values, rank, rank]
        self.project = project_in(width, sum(self.features))
        self.conv1d = None
        if config.conv:
            self.conv1d = nn.Conv1d(mixed, mixed, config.conv, groups=mixed, bias=config.conv_bias)
        self.decay = project_in(rank, keys)
        self.gate = project_in(rank, values, bias=True)
        self.out = project_out(values, width)
        self.norm = nn.Parameter(torch.ones(self.value))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(initial_dt_bias(keys))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> GatedDelta2State:
        memory = (batch, self.config.heads, self.key, self.value)
        conv = (batch, max(self.config.conv, 1) - 1, self.features[0])
        return GatedDelta2State(*(torch.zeros(size, dtype=self.state_dtype, device=device) for size in (memory, conv)))

    def forward(self, x: Tensor, state: GatedDelta2State | None, ctx: Pass) -> tuple[Tensor, GatedDelta2State]:
        state = state or self.init_state(x.shape[0], device=x.device)
        dtype, heads = self.state_dtype, self.config.heads
        mixed, erase, write, decay, gate = self.project(x).split(self.features, dim=-1)
        decay, gate = self.decay(decay), self.gate(gate)
        if self.conv1d is None:
            mixed, conv = silu(mixed.to(dtype)), state.conv
        else:
            mixed, conv = convolve(self.conv1d, mixed.to(dtype), state.conv, ctx)
        with torch.autocast(x.device.type, enabled=False):
            qk, v = mixed.split([2 * heads * self.key, heads * self.value], dim=-1)
            q, k = l2_norm(qk.unflatten(-1, (2, heads, self.key)), self.config.key_norm_eps).unbind(2)
            erase, write, decay = (part.to(dtype).unflatten(-1, (heads, -1)) for part in (erase, write, decay))
            erase, write, log_decay = self._gates(erase, write, decay, ctx)
            if ctx.mask is not None:  # padding leaves the memory unchanged
                real = ctx.mask[..., None, None]
                k, log_decay = k * real, log_decay * real
            v = write * v.unflatten(-1, (heads, self.value))
            recall = log_decay.exp() * erase * k
            o, memory = generalized_delta_rule(q, k, v, recall, -k, log_decay, state.memory)
            y = rms_norm(o, self.norm, self.config.norm_eps, dtype).flatten(2)
            y = (y * sigmoid(gate.to(dtype))).to(gate.dtype)
        return self.out(y), GatedDelta2State(memory, conv)

    def _gates(self, erase: Tensor, write: Tensor, decay: Tensor, ctx: Pass) -> tuple[Tensor, Tensor, Tensor]:
        """b [B, T, H, K], w [B, T, H, V] and log α [B, T, H, K] of their logits."""
        erase, write = self.config.erase_max * sigmoid(erase), sigmoid(write)
        log_decay = -self.A_log.exp()[:, None] * softplus(decay + self.dt_bias.unflatten(0, (-1, self.key)))
        if ctx.trace is not None:
            ctx.emit("erase", erase)
            ctx.emit("write", write)
            ctx.emit("decay", log_decay.exp())
        return erase, write, log_decay

    def flops(self, time: int) -> float:
        """The matrices, and per head KV multiplications to decay, 2KV operations to recall, to erase, to write and to
        read."""
        return super().flops(time) + 9.0 * self.config.heads * self.key * self.value

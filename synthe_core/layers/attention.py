"""Causal softmax attention whose state is a bounded window of keys and values."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError, nearest_divisor
from synthe_core.layers.adapter_batch import select_rows
from synthe_core.layers.conditional_gate import Condition, ConditionalGate, SelectedTokens
from synthe_core.layers.growing_window import extended
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import project_in, project_out
from synthe_core.layers.rope import Scaling, check_pairs, pass_angles
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.attention import probed_attention, window_attention
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.rotary import rotary

FULL_WINDOW = 1 << 17


class AttentionState(NamedTuple):
    """The last tokens' keys and values, float32 [B, n, G, K], n at most the window and the oldest token first.

    Of the n of a row only the last `filled` [B] are real: other rows may have seen more.
    """

    keys: Tensor
    values: Tensor
    filled: Tensor


def grows_in_place(key: Tensor, state: AttentionState, ctx: Pass) -> bool:
    """Whether the window takes one more token without being copied: decoding on CUDA."""
    one = key.is_cuda and key.shape[1] == 1 and ctx.lengths is None and not torch.is_grad_enabled()
    return one and key.dtype == state.keys.dtype


def appended(state: AttentionState, key: Tensor, value: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The last `window` keys and values with one more token, key and value [B, 1, G, K], behind them."""
    place = extended(state.keys, state.values, window)
    at = place.start + place.past
    place.keys.narrow(1, at, 1).copy_(key)
    place.values.narrow(1, at, 1).copy_(value)
    return place.windows()


class Attention(Learner[AttentionState]):
    """o_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s over the last `window` tokens, rotary positions, grouped heads.

    `scale` replaces 1 / sqrt(K). With `logit_cap` c, scores a become c tanh(a / c) before the softmax.

    x [B, T, D]; H query heads of size K (D / H by default) read G = `kv_heads` key heads. The state grows with the
    sequence up to `window` tokens (`full` = 131,072), 2 n G K values a row.

    With `gate` the heads' outputs are multiplied by σ(W_g x), channel by channel, before the output map.

    With `when` it is a probe: it runs only at the tokens that a `ConditionalGate` selects. The others get y = 0, and no
    query, score or output is computed for them. Keys and values are computed for every token, as later queries read
    them.

    Sources: Vaswani et al. 2017; RoPE: Su et al. 2021; GQA: Ainslie et al. 2023; query-key norm: Henry et al. 2020;
    gate: Qiu et al. 2025; cap: Gemma Team 2024, "Gemma 2"; clip: MosaicML 2023, "MPT"; joint norm: Team OLMo 2024.
    """

    class Config(LearnerConfig):
        type: Literal["attention"] = "attention"
        heads: int = Field(8, ge=1)
        kv_heads: int | None = Field(None, ge=1, description="key/value heads; default as many as heads")
        head_size: int | None = Field(None, ge=1, description="channels of a head; default the width divided by heads")
        window: int | Literal["full"] = Field("full", description="how many tokens back a token sees, itself included")
        rope: float | None = Field(10_000.0, gt=0, description="base of the rotary frequencies; null = no positions")
        rope_size: int | None = Field(
            None, ge=2, description="channels of a head that rotary positions turn, the first; default all"
        )
        rope_scaling: Scaling | None = Field(None, description="how rotary positions are stretched for longer texts")
        scale: float | None = Field(None, gt=0, description="what scores are multiplied by; default head_size^-1/2")
        logit_cap: float | None = Field(
            None, gt=0, description="c of c tanh(score / c), which bounds scores; null: none"
        )
        qk_norm: bool | Literal["weighted", "joint"] = Field(
            True,
            description="normalise queries and keys, which keeps large learning rates stable; weighted: with a learned "
            "scale for each channel of a head; joint: all heads together, with a scale for each channel of each",
        )
        norm_eps: float = Field(1e-6, gt=0, description="what that norm adds to a mean square")
        bias: Literal["none", "qkv", "out", "all"] = Field(
            "none", description="learned biases: of queries, keys and values, of the output, or of all"
        )
        clip: float | None = Field(
            None, gt=0, description="the largest absolute value of a channel of projected queries, keys and values"
        )
        gate: bool = Field(False, description="a sigmoid gate on every channel of the heads' outputs")
        when: Condition | None = Field(
            None, description="run only at the tokens that this selects; null = at every token"
        )

    emits = schema(
        {
            "gate_open": Emission("B T", "routing", "whether the probe ran at the token"),
            "output_gate": Emission("B T H E", "gates", "the gate on a head's output, mean over channels"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.heads, self.groups = config.heads, config.kv_heads or config.heads
        if config.head_size is None and width % self.heads:
            raise InputError(
                f"attention: width {width} is not divisible by heads {self.heads}", nearest_divisor(width, self.heads)
            )
        if self.heads % self.groups:
            raise InputError(
                f"attention: heads {self.heads} is not divisible by kv_heads {self.groups}",
                nearest_divisor(self.heads, self.groups, "kv_heads"),
            )
        self.size = config.head_size or width // self.heads
        self.turned = self._turned(config)
        self.rotates = self.turned > 0 or config.qk_norm is True  # `rotary` applies the plain norm
        if isinstance(config.window, int) and config.window < 1:
            raise InputError(f"attention: window must be at least 1, not {config.window}", "or `full`")
        if isinstance(config.window, int) and config.window >= 2**31:
            raise InputError(f"attention: window must be below {2**31}, not {config.window}", "or `full`")
        self.window = FULL_WINDOW if config.window == "full" else config.window
        self.features = [n * self.size for n in (self.heads, self.groups, self.groups, self.heads * config.gate)]
        self.qkv = project_in(width, sum(self.features), config.bias in ("qkv", "all"))  # and the gate
        self.out = project_out(self.heads * self.size, width, config.bias in ("out", "all"))
        if config.qk_norm in ("weighted", "joint"):
            counts = (1, 1) if config.qk_norm == "weighted" else (self.heads, self.groups)
            self.q_norm, self.k_norm = (nn.Parameter(torch.ones(n * self.size)) for n in counts)
        self.conditional_gate = None if config.when is None else ConditionalGate(config.when)

    def _turned(self, config: Config) -> int:
        """How many channels of a head its position turns."""
        if config.rope is None:
            for key in ("rope_size", "rope_scaling"):
                if getattr(config, key) is not None:
                    raise InputError(f"attention: {key} is of rotary positions, and rope is null", "leave one out")
            return 0
        turned = config.rope_size or self.size
        if turned > self.size:
            raise InputError(f"attention: rope_size {turned} of heads of {self.size} channels", "leave out rope_size")
        if turned % 2:
            what, hint = (
                ("an even rope_size", "change it") if config.rope_size else ("an even head size", "change heads")
            )
            raise InputError(f"attention: rotary positions need {what}, not {turned}", hint)
        check_pairs(config.rope_scaling, turned // 2, "attention")
        return turned

    @classmethod
    def reads(cls, config: Any) -> tuple[str, ...]:
        return () if config.when is None else config.when.reads

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> AttentionState:
        empty = (batch, 0, self.groups, self.size)
        return AttentionState(
            *(torch.zeros(n, dtype=self.state_dtype, device=device) for n in (empty, empty, (batch,)))
        )

    def forward(self, x: Tensor, state: AttentionState | None, ctx: Pass) -> tuple[Tensor, AttentionState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        selected = None if self.conditional_gate is None else self.conditional_gate(ctx, self.state_dtype)
        if selected is None:
            qk, v, gate = self.qkv(x).split((sum(self.features[:2]), *self.features[2:]), dim=-1)
            heads, v = (self._clipped(part).unflatten(-1, (-1, self.size)) for part in (qk, v))
            q, k = self._normalise_and_rotate(heads, (self.heads, self.groups), ctx)
        else:
            q, gate = self._queries(x, selected, ctx)
            k, v = self._project(x, slice(self.features[0], sum(self.features[:3]))).chunk(2, dim=2)
            k = self._normalise_and_rotate(k, (0, self.groups), ctx)[1]
        if selected is None and grows_in_place(k, state, ctx):
            k, v = appended(state, k, v, self.window)
            valid = ctx.valid(k.shape[1] - 1, state.filled.clamp_max(k.shape[1] - 1))
        else:
            if state.keys.shape[1]:
                k = torch.cat([state.keys.to(k.dtype), k], dim=1)
                v = torch.cat([state.values.to(v.dtype), v], dim=1)
            valid = ctx.valid(state.keys.shape[1], state.filled)
        if selected is None:
            o = window_attention(q, k, v, self.window, valid, self.config.logit_cap).flatten(2)
            y = self.out(self._gated(o, gate))
            if ctx.trace is not None and self.config.gate:
                ctx.emit("output_gate", sigmoid(gate).unflatten(-1, (-1, self.size)))
        else:
            o = probed_attention(q, k, v, selected.mask, self.window, valid, self.config.logit_cap).flatten(1)
            y = self._scatter_outputs(self._gated(o, gate), selected, ctx)
        length = min(self.window, k.shape[1])
        keys, values = (ctx.last(t, length).to(state.keys.dtype) for t in (k, v))
        new = x.shape[1] if ctx.mask is None else ctx.mask.sum(1)
        return y, AttentionState(keys, values, (state.filled + new).clamp_max(length))

    def _project(self, x: Tensor, rows: slice) -> Tensor:
        """Some rows of the projection, as heads: [..., h, K]."""
        return self._clipped(self.qkv.project(x, rows)).unflatten(-1, (-1, self.size))

    def _clipped(self, features: Tensor) -> Tensor:
        return features if self.config.clip is None else features.clamp(-self.config.clip, self.config.clip)

    def _queries(self, x: Tensor, selected: SelectedTokens, ctx: Pass) -> tuple[Tensor, Tensor]:
        """The queries [N, H, K] and the gate's logits [N, HK] of the selected tokens."""
        inputs = x.flatten(0, 1).index_select(0, selected.indices)
        with select_rows(selected.indices // x.shape[1]):
            q = self._project(inputs, slice(self.features[0]))[None]
            gate = self.qkv.project(inputs, slice(sum(self.features[:3]), None)) if self.config.gate else q[..., :0]
        positions = ctx.positions.flatten().index_select(0, selected.indices)[None]
        return self._normalise_and_rotate(q, (self.heads, 0), ctx, positions)[0][0], gate

    def _gated(self, o: Tensor, gate: Tensor) -> Tensor:
        """The heads' outputs o [..., HK], each channel times the sigmoid of its logit where there is a gate."""
        return o * sigmoid(gate) if self.config.gate else o

    def _scatter_outputs(self, o: Tensor, selected: SelectedTokens, ctx: Pass) -> Tensor:
        """y [B, T, D] from the selected tokens' attention outputs o [N, HK]; zeros elsewhere."""
        ctx.skipped.append(self._skipped_flops(selected.mask, ctx))
        with select_rows(selected.indices // selected.mask.shape[1]):
            y = self.out(o)
        y = y * selected.scale[:, None].to(y.dtype)
        outputs = y.new_zeros(selected.mask.numel(), self.width).index_copy(0, selected.indices, y)
        return outputs.unflatten(0, selected.mask.shape)

    def _normalise_and_rotate(
        self, heads: Tensor, counts: tuple[int, int], ctx: Pass, positions: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Query and key heads [B, T, h, K], `counts` of each, normalised and rotated by their positions, by default
        the pass's."""
        positions = ctx.positions if positions is None else positions
        if self.config.qk_norm in ("weighted", "joint"):
            parts = zip(heads.split(counts, dim=2), (self.q_norm, self.k_norm), counts, strict=True)
            heads = torch.cat([self._normed(part, weight) for part, weight, count in parts if count], dim=2)
        if self.rotates:
            cos, sin = pass_angles(
                ctx, positions, self.turned, self.config.rope, self.config.rope_scaling, self.state_dtype
            )
            heads = rotary(heads, cos, sin, self.config.norm_eps if self.config.qk_norm is True else None)
        q, k = heads.split(counts, dim=2)
        return q if self.config.scale is None else q * (self.config.scale * self.size**0.5), k

    def _normed(self, heads: Tensor, weight: Tensor) -> Tensor:
        """Each head of [B, T, H, K], or all together where `weight` is so long, at unit scale, times `weight`."""
        wide = self.state_dtype
        normed = rms_norm(
            heads.flatten(2).unflatten(-1, (-1, len(weight))).to(wide),
            weight.to(wide),
            self.config.norm_eps,
            heads.dtype,
        )
        return normed.view(heads.shape)

    def state_bytes(self, time: int) -> int:
        """Keys and values of the window's tokens, and their count."""
        return (2 * min(self.window, time) * self.groups * self.size + 1) * self.state_dtype.itemsize

    def flops(self, time: int) -> float:
        """The matrices', and 4 K per head for every key that a token sees on average; all tokens inputs."""
        window = min(self.window, time)
        seen = window - window * (window - 1) / (2 * time)
        return super().flops(time) + 4.0 * self.heads * self.size * seen

    def _skipped_flops(self, selected: Tensor, ctx: Pass) -> Tensor:
        """The operations of `flops` that unselected tokens of this pass skip."""
        unselected = (~selected).to(torch.float64 if selected.device.type != "mps" else torch.float32)
        if ctx.mask is not None:
            unselected = unselected * ctx.mask
        seen = torch.arange(1, selected.shape[1] + 1, device=selected.device).clamp_max(self.window)
        return 4.0 * self.heads * self.size * (unselected * ((1 + self.config.gate / 2) * self.width + seen)).sum()

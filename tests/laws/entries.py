"""The settings that the laws are tested on. A learner that is not named here is tested at its defaults."""

from __future__ import annotations

from typing import Any

import torch

from synthe_core.layers import LAYERS, build, parse
from synthe_core.layers.learner import Learner, Pass

WIDTH = 32

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {"heads": 4},
        {"heads": 4, "kv_heads": 2, "window": 5},
        {"heads": 2, "window": 1, "rope": None, "qk_norm": False},
        {"heads": 2, "head_size": 6, "qk_norm": "weighted", "bias": "all", "rope_scaling": {"type": "llama3"}},
        {"heads": 4, "kv_heads": 2, "window": 7, "logit_cap": 0.7, "scale": 0.3, "clip": 1.1, "qk_norm": "joint"},
        {"heads": 2, "logit_cap": 2.0, "clip": 1.5, "qk_norm": "joint", "when": {"signal": "random", "below": 0.4}},
        {"heads": 4, "kv_heads": 2, "window": 5, "when": {"signal": "confidence", "below": 0.86}},
        {
            "heads": 2,
            "bias": "all",
            "qk_norm": "weighted",
            "when": {"signal": "surprise", "above": 1.3, "target": None, "explore": 0},
        },
        {"heads": 2, "window": 8, "rope": None, "qk_norm": False, "when": {"signal": "random", "below": 0.4}},
        {"heads": 4, "kv_heads": 2, "rope_size": 4, "gate": True, "qk_norm": "weighted"},
        {"heads": 2, "rope_size": 6, "gate": True, "bias": "all", "when": {"signal": "confidence", "below": 0.86}},
    ],
    "bidirectional_attention": [{"heads": 4}, {"heads": 2, "rope": None, "qk_norm": False}],
    "byte_patch": [{}, {"stride": 3, "taps": 3}, {"stride": 1, "taps": 2}],
    "channel_mixing": [{}, {"hidden": 20}],
    "conv": [{}, {"taps": 2}],
    "delta": [
        {"heads": 2},
        {"heads": 4, "conv": 0, "gate": False, "decay": False},
        {"heads": 2, "beta_range": [0, 2], "clip": 1.0},
        {"heads": 2, "overwrite": False},
        {"heads": 2, "householder": 2, "beta_range": [0, 2]},
        {"heads": 2, "signals": True},
        {"heads": 2, "householder": 2, "decay": False, "signals": True},
        {"heads": 2, "value_heads": 4, "key_size": 5, "value_size": 7, "conv_bias": True, "query_scale": 0.3}
        | {"gate_function": "sigmoid"},
        {"heads": 1, "value_heads": 3, "key_size": 4, "value_size": 6, "householder": 2, "signals": True},
    ],
    "delta_memory": [{"heads": 2}],
    "experts": [
        {"experts": 5, "hidden": 12},
        {"experts": 3, "top_k": 1, "hidden": 8, "z_loss": 0.1},
        {"experts": 4, "hidden": 10, "activation": "relu2", "gated": False},
        {"experts": 3, "hidden": 8, "activation": "relu2", "gated": False, "latent": 7},
        {"hidden": 8, "activation": "gelu"},
        {"experts": 5, "hidden": 12, "normalize": False, "shared": 7, "shared_gate": True},
        {"top_k": 3, "hidden": 8, "scores": "sigmoid", "weight_scale": 2.5, "shared": 9}
        | {"groups": 4, "top_groups": 2, "bias_rate": 0.01},
    ],
    "fast_weights": [
        {"heads": 2},
        {"heads": 2, "key_size": 5, "value_size": 7, "decay": 1.0, "strength": 0.5, "qk_norm": False},
    ],
    "multiscale_memory": [
        {
            "tiers": [
                {"every": 1, "rule": "momentum"},
                {"every": 3, "size": 8, "rule": {"type": "delta", "heads": 2}},
                {"every": 6, "size": 5, "rule": "kalman"},
            ]
        },
        {
            "tiers": [
                {"every": 1, "size": 20, "rule": "kalman"},
                {"every": 4, "size": 12, "rule": "test_time"},
                {"every": 8, "size": 8, "rule": {"type": "test_time", "heads": 2}},
            ]
        },
        {
            "tiers": [
                {"every": 1, "rule": "momentum"},
                {"every": 2, "size": 6, "rule": "kalman"},
                {"every": 4, "size": 8, "rule": "test_time"},
                {"every": 8, "size": 6, "rule": "momentum"},
            ],
            "surprise": False,
            "momentum": False,
            "test_time": False,
            "consolidate": False,
            "prediction": 0.1,
            "reset_every": 16,
        },
    ],
    "forgetting_attention": [
        {"heads": 4},
        {"heads": 4, "kv_heads": 2, "window": 5, "gate": True},
        {"heads": 2, "head_size": 5, "window": 2, "qk_norm": False},
    ],
    "gated_conv": [{}, {"taps": 5, "bias": True}],
    "gated_delta_2": [
        {"heads": 2},
        {"heads": 2, "key_size": 5, "value_size": 3, "conv": 0, "rank": 3, "erase_max": 2.0},
        {"heads": 4, "conv": 2, "conv_bias": True},
    ],
    "gla": [
        {"heads": 2},
        {"heads": 4, "kv_heads": 2, "key_size": 3, "value_size": 5, "conv": 3, "conv_bias": True, "rank": 4},
        {"heads": 2, "temperature": 1.0, "decay_floor": -0.5, "gate": False, "conv": 1},
    ],
    "hgrn2": [
        {"heads": 2},
        {"heads": 2, "key_size": 5, "value_size": 3, "lower_bound": 0.3},
    ],
    "hyena": [
        {"length": 9, "filter_width": 8, "bands": 2},
        {"length": 70, "filter_layers": 1, "frequency": 1.0, "decay": [0.5, 0.5], "shift": 0.05},
    ],
    "kalman": [
        {},
        {"every": 3, "rank": 12},
        {"covariance": {"heads": 2, "rank": 3}},
        {"every": 3, "rank": 12, "covariance": {"heads": 3, "rank": 2}},
    ],
    "kda": [
        {"heads": 2},
        {"heads": 2, "key_size": 5, "value_size": 7, "conv": 1, "rank": 3},
        {"heads": 2, "value_heads": 4, "key_size": 5, "value_size": 3, "conv": 0, "gate_bias": False}
        | {"beta_range": [0, 2]},
        {"heads": 2, "value_heads": 6, "conv": 2, "conv_bias": True, "decay_floor": -2.0},
    ],
    "latent_attention": [
        {"heads": 4, "rank": 24},
        {"heads": 2, "rank": 7, "q_rank": 9, "key_size": 6, "value_size": 11, "rope_size": 4, "window": 5}
        | {"bias": True, "rope_scaling": {"type": "yarn", "factor": 4.0, "context": 64}, "interleaved": True},
        {"heads": 3, "rank": 12, "key_size": 5, "value_size": 4, "rope_size": 3, "rope": None, "scale": 0.5},
        {"heads": 2, "rank": 10, "rope_size": 0, "window": 1},
    ],
    "lightning_attention": [{"heads": 4}, {"heads": 3, "head_size": 5, "decay_scale": 0.2}],
    "log_linear": [
        {"over": {"type": "delta", "heads": 2}, "levels": 8},
        {
            "over": {"type": "delta", "heads": 1, "value_heads": 2, "key_size": 5, "decay": False, "conv": 0},
            "levels": 4,
        },
        {"over": {"type": "mamba2", "head_size": 16, "state_size": 6}, "levels": 3},
        {"over": {"type": "delta", "heads": 4, "overwrite": False}, "levels": 2},
    ],
    "mamba": [
        {"state_size": 5},
        {"conv": 1, "conv_bias": False, "bias": True, "dt_rank": 3, "expand": 1},
        {"state_size": 6, "dt_rank": 5, "bc_dt_norm": True},
        {"state_size": 3, "bc_dt_norm": "weighted", "norm_eps": 1e-3},
    ],
    "mamba2": [
        {"head_size": 16, "state_size": 8},
        {"head_size": 8, "state_size": 6, "groups": 2, "bias": True, "time_step_limit": [0.01, 0.5]},
        {"head_size": 32, "state_size": 4, "expand": 1, "conv": 2, "conv_bias": False},
        {"head_size": 7, "heads": 6, "state_size": 5, "groups": 3, "norm": "before_gate", "norm_groups": 2}
        | {"multipliers": [0.7, 1.3, 0.5, 2.0, 1.1], "bias": "in"},
        {"head_size": 5, "heads": 3, "state_size": 4, "norm": "none", "bias": "out"},
    ],
    "mamba3": [
        {"head_size": 16, "state_size": 8},
        {"head_size": 8, "state_size": 6, "groups": 2, "rope_fraction": 1.0, "rate": "heavy_tail", "norm": True},
        {"head_size": 16, "state_size": 5, "rank": 3, "groups": 2},
        {"head_size": 8, "state_size": 4, "rank": 2, "expand": 1, "norm": True, "norm_eps": 1e-3},
    ],
    "mesa": [
        {"heads": 4},
        {"heads": 2, "key_size": 5, "value_size": 3, "conv": 0, "gate": True},
        {"heads": 4, "key_size": 6, "conv": 2, "conv_bias": True, "ridge_min": 0.5},
    ],
    "mlp": [
        {},
        {"hidden": 24, "bias": True},
        {"hidden": 20, "activation": "gelu_tanh", "gate_scale": 0.4},
        {"hidden": 20, "activation": "relu2", "gated": False, "bias": True},
    ],
    "mlstm": [
        {"heads": 2},
        {"heads": 2, "conv": 0, "cap": None, "forget": "exponential", "output": "silu", "forget_bias": [-1, 1]},
        {"heads": 4, "key_size": 3, "value_size": 6, "conv": 0, "norm": "layer", "norm_eps": 1e-3},
    ],
    "retention": [
        {"heads": 4},
        {"heads": 2, "key_size": 5, "value_size": 3, "rope": None, "gate": False},
    ],
    "rg_lru": [
        {"heads": 4},
        {"heads": 3, "channels": 21, "conv": 2, "bias": False, "activation": "silu"},
        {"heads": 1, "channels": 5, "conv": 1, "activation": "gelu"},
    ],
    "rwkv7": [
        {"head_size": 16},
        {"head_size": 4, "values": "share", "decay_rank": 3, "rate_rank": 5, "gate_rank": 4},
        {"head_size": 8, "values": "mix", "value_rank": 3, "norm_eps": 1e-3, "key_norm_eps": 1e-6},
    ],
    "slots": [
        {"slots": 12, "heads": 2, "key_size": 4, "reads": 3, "writes": 2, "chunk": 7, "match": 0.3},
        {"slots": 9, "heads": 1, "key_size": 3, "reads": 4, "writes": 5, "chunk": 10, "router": "sparsemax"}
        | {"match": 0.6, "value_size": 6, "prediction": 0.1, "horizon": 20.0},
    ],
    "spectral": [
        {},
        {"points": 4, "timescales": [2, 5], "gate": "token"},
        {"points": 3, "group": 4, "gate": "input"},
    ],
    "test_time": [
        {"heads": 2, "span": 8},
        {"heads": 2, "size": 12, "span": 4, "momentum": False, "surprise": False},
        {"heads": 1, "size": 5, "span": 3, "test_time": False},
    ],
    "titans": [
        {"heads": 2, "chunk": 8},
        {"heads": 2, "head_size": 5, "layers": 1, "chunk": 3, "conv": 0, "forget": False},
        {"heads": 4, "expand": 1, "chunk": 16, "conv": 2, "momentum": False},
    ],
    "ttt": [
        {"heads": 4, "chunk": 8},
        {"heads": 2, "head_size": 6, "layers": 2, "expand": 2, "chunk": 5, "conv": 0},
    ],
    "context_routed_moe": [
        {"experts": 5, "hidden": 12, "channels": 16},
        {"experts": 4, "top_k": 3, "hidden": 8, "channels": 8, "context": "momentum", "bias": True, "decay": 0.9},
    ],
    "tiers": [{}, {"tiers": 1, "size": 7}, {"tiers": 3, "size": 10, "ratio": 3, "timescales": [3, 9]}],
}

CASES = [{"type": name} | variant for name in LAYERS for variant in VARIANTS.get(name, [{}])]
CAUSAL = [case for case in CASES if LAYERS[case["type"]].causal]
FIRST = [next(case for case in CASES if case["type"] == name) for name in LAYERS]
"""One setting of each learner, for what takes long."""


def case_name(case: dict[str, Any]) -> str:
    rest = ",".join(f"{key}={value}" for key, value in case.items() if key != "type")
    return f"{case['type']}({rest})"


def block_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The case, behind a learner that publishes signals if it has a condition, or shares values if it mixes them in."""
    if case.get("values") == "mix":
        return [{"type": "rwkv7", "head_size": 8, "values": "share"}, case]
    return [{"type": "kalman"}, case] if "when" in case else [case]


class Chain(Learner[tuple[Any, ...]]):
    """Learners one after another as in a block, as one: y = what they add to x."""

    def __init__(self, learners: list[Learner[Any]]) -> None:
        super().__init__(None, WIDTH)
        self.learners = torch.nn.ModuleList(learners)

    @property
    def parts(self) -> list[Learner[Any]]:
        return list(self.learners)  # type: ignore[arg-type]

    def init_state(self, batch: int, *, device: Any = "cpu") -> tuple[Any, ...]:
        return tuple(part.init_state(batch, device=device) for part in self.parts)

    def forward(self, x: torch.Tensor, state: Any, ctx: Pass) -> tuple[torch.Tensor, tuple[Any, ...]]:
        total, after = torch.zeros_like(x), []
        for part, before in zip(self.parts, state or [None] * len(self.parts), strict=True):
            y, remembered = part(x + total, before, ctx)
            total = total + y
            after.append(remembered)
        return total, tuple(after)

    def state_bytes(self, time: int) -> int:
        return sum(part.state_bytes(time) for part in self.parts)

    def flops(self, time: int) -> float:
        return sum(part.flops(time) for part in self.parts)


def as_built(case: dict[str, Any]) -> Learner[Any]:
    """The case's learner with its own initial values, in a chain with whom it needs before it."""
    learners = [build(parse(each), WIDTH) for each in block_of(case)]
    return learners[0] if len(learners) == 1 else Chain(learners)


def make(case: dict[str, Any], seed: int = 0) -> Learner[Any]:
    """A learner in float64 whose every parameter is away from its initial symmetry."""
    torch.manual_seed(seed)
    learner = as_built(case).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return learner


def run(
    learner: Learner[Any], x: torch.Tensor, state: Any = None, start: int = 0, lengths: Any = None, trace: Any = None
):
    """One pass over x from position `start` (an int or int64 [B]); returns output, state and the pass."""
    first = torch.as_tensor(start).expand(x.shape[0])
    ctx = Pass.over(x, lengths, first, trace)
    y, after = learner(x, state, ctx)
    return y, after, ctx


def inputs(batch: int, time: int, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)

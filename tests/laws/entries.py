"""The settings that the laws are tested on. A learner that is not named here is tested at its defaults."""

from __future__ import annotations

from typing import Any

import torch

from synthe_core.layers import LAYERS, build, parse
from synthe_core.learner import Learner, Pass

WIDTH = 32

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {"heads": 4},
        {"heads": 4, "kv_heads": 2, "window": 5},
        {"heads": 2, "window": 1, "rope": None, "qk_norm": False},
        {"heads": 2, "head_size": 6, "qk_norm": "weighted", "bias": "all", "rope_scaling": {"type": "llama3"}},
    ],
    "byte_patch": [{}, {"stride": 3, "taps": 3}, {"stride": 1, "taps": 2}],
    "conv": [{}, {"taps": 2}],
    "delta": [
        {"heads": 2},
        {"heads": 4, "conv": 0, "gate": False, "decay": False},
        {"heads": 2, "beta_range": [0, 2], "clip": 1.0},
        {"heads": 2, "overwrite": False},
        {"heads": 2, "householder": 2, "beta_range": [0, 2]},
    ],
    "delta_memory": [{"heads": 2}],
    "experts": [{"experts": 5, "hidden": 12}, {"experts": 3, "top_k": 1, "hidden": 8, "z_loss": 0.1}],
    "fast_weights": [
        {"heads": 2},
        {"heads": 2, "key_size": 5, "value_size": 7, "decay": 1.0, "strength": 0.5, "qk_norm": False},
    ],
    "hyena": [
        {"length": 9, "filter_width": 8, "bands": 2},
        {"length": 70, "filter_layers": 1, "frequency": 1.0, "decay": [0.5, 0.5], "shift": 0.05},
    ],
    "kalman": [{}, {"every": 3, "rank": 12}],
    "kda": [{"heads": 2}, {"heads": 2, "key_size": 5, "value_size": 7, "conv": 1, "rank": 3}],
    "mamba": [{"state_size": 5}, {"conv": 1, "conv_bias": False, "bias": True, "dt_rank": 3, "expand": 1}],
    "mamba2": [
        {"head_size": 16, "state_size": 8},
        {"head_size": 8, "state_size": 6, "groups": 2, "bias": True, "time_step_limit": [0.01, 0.5]},
        {"head_size": 32, "state_size": 4, "expand": 1, "conv": 2, "conv_bias": False},
    ],
    "mlp": [{}, {"hidden": 24, "bias": True}],
    "mlstm": [
        {"heads": 2},
        {"heads": 2, "conv": 0, "cap": None, "forget": "exponential", "output": "silu", "forget_bias": [-1, 1]},
    ],
    "rwkv7": [{"head_size": 16}, {"head_size": 4}],
    "slots": [
        {"slots": 12, "heads": 2, "key_size": 4, "reads": 3, "writes": 2, "chunk": 7, "match": 0.3},
        {"slots": 9, "heads": 1, "key_size": 3, "reads": 4, "writes": 5, "chunk": 10, "router": "sparsemax"}
        | {"match": 0.6, "value_size": 6, "prediction": 0.1, "horizon": 20.0},
    ],
    "spectral": [{}, {"points": 4, "timescales": [2, 5]}],
    "thalamus": [
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


def make(case: dict[str, Any], seed: int = 0) -> Learner[Any]:
    """A learner in float64 whose every parameter is away from its initial symmetry."""
    torch.manual_seed(seed)
    learner = build(parse(case), WIDTH).double()
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

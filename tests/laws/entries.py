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
    "delta": [
        {"heads": 2},
        {"heads": 4, "conv": 0, "gate": False, "decay": False},
        {"heads": 2, "beta_range": [0, 2], "clip": 1.0},
        {"heads": 2, "overwrite": False},
    ],
    "mlp": [{}, {"hidden": 24, "bias": True}],
    "kalman": [{}, {"every": 3, "rank": 12}],
}

CASES = [{"type": name} | variant for name in LAYERS for variant in VARIANTS.get(name, [{}])]
CAUSAL = [case for case in CASES if LAYERS[case["type"]].causal]


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

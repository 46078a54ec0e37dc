"""Small settings of the learners for counts and checks on a device. A learner that is not named has its defaults."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 2},
    "context_routed_moe": {"experts": 4, "hidden": 32},
    "delta": {"heads": 2},
    "delta_memory": {"heads": 2},
    "fast_weights": {"heads": 2},
    "forgetting_attention": {"heads": 2},
    "gated_delta_2": {"heads": 2},
    "gla": {"heads": 2},
    "hgrn2": {"heads": 2},
    "hyena": {"length": 1024},
    "kda": {"heads": 2},
    "latent_attention": {"heads": 2, "rank": 24},
    "lightning_attention": {"heads": 2},
    "log_linear": {"over": {"type": "delta", "heads": 2}, "levels": 8},
    "mesa": {"heads": 2},
    "mlstm": {"heads": 2},
    "multiscale_memory": {
        "tiers": [
            {"every": 1, "size": 64, "rule": "momentum"},
            {"every": 16, "size": 32, "rule": {"type": "test_time", "heads": 2}},
            {"every": 128, "size": 32, "rule": "kalman"},
        ]
    },
    "retention": {"heads": 2},
    "rwkv7": {"head_size": 32},
    "slots": {"slots": 64, "heads": 2},
    "test_time": {"heads": 2},
    "titans": {"heads": 2},
    "ttt": {"heads": 2},
}

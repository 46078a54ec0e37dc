"""A tiny teacher and students of it."""

from __future__ import annotations

from typing import Any

import torch

from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec

VOCAB = 50
ATTENTION = {"type": "attention", "heads": 4, "kv_heads": 2, "qk_norm": False}
MLP = {"type": "mlp", "hidden": 48}
SIZES = {"width": 32, "blocks": 3, "embed_norm": False}
LEARNERS: dict[str, dict[str, Any]] = {
    "gla": {"type": "gla", "heads": 4, "kv_heads": 2, "key_size": 8, "value_size": 8, "gate": False},
    "gla gated": {"type": "gla", "heads": 4, "key_size": 8, "value_size": 8, "conv": 3, "conv_bias": True},
    "delta": {"type": "delta", "heads": 4},
    "delta two steps": {"type": "delta", "heads": 4, "householder": 2, "conv": 0, "gate": False},
    "kda": {"type": "kda", "heads": 4},
    "mamba2": {
        "type": "mamba2",
        "heads": 4,
        "head_size": 8,
        "state_size": 8,
        "groups": 4,
        "norm": "none",
        "bias": "in",
    },
    "lightning_attention": {"type": "lightning_attention", "heads": 4},
    "mlstm": {"type": "mlstm", "heads": 4, "key_size": 8},
    "fast_weights": {"type": "fast_weights", "heads": 4, "qk_norm": False},
    "rwkv7": {"type": "rwkv7", "head_size": 8},
}
"""A student's learner for every one that takes over attention's maps, of the teacher's sizes."""


def spec(*mixers: dict[str, Any]) -> ModelSpec:
    """Blocks of these mixers in turn, each followed by an MLP."""
    return ModelSpec.model_validate({**SIZES, "block": [[mixer, MLP] for mixer in mixers]})


def teacher(dtype: torch.dtype = torch.float64, seed: int = 0, **attention: Any) -> LanguageModel:
    """Random weights, also of what starts at zero or one."""
    torch.manual_seed(seed)
    model = LanguageModel(spec({**ATTENTION, **attention}), VOCAB).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.embedding.weight.mul_(20)
    return model


def student(*mixers: dict[str, Any], dtype: torch.dtype = torch.float64, seed: int = 1) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(spec(*mixers), VOCAB).to(dtype)


def tokens(rows: int = 2, time: int = 24) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, time), generator=torch.Generator().manual_seed(3))

"""Checkpoints of random weights in the classes of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.interop.huggingface.auto_classes import registration
from synthe_core.layers import LAYERS
from synthe_core.model.language_model import LanguageModel
from synthe_core.storage.checkpoint import Checkpoint
from tests.evaluation.models import saved
from tests.laws.entries import FIRST, block_of, case_name

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()
registration.register()

LEARNERS = [case for case in FIRST if LAYERS[case["type"]].causal]
each_learner = pytest.mark.parametrize("case", LEARNERS, ids=case_name)
EVERYTHING: list[Any] = [
    {"type": "kalman"},
    {"type": "attention", "heads": 2, "when": {"signal": "confidence", "below": 0.86}},
    {"type": "experts", "experts": 4, "hidden": 16},
    {"type": "slots", "slots": 12, "heads": 2, "key_size": 4, "reads": 3, "writes": 2},
]
"""Learners that publish and read signals, route, have auxiliary losses, and buffers that no file stores."""


def blocks(case: dict[str, Any]) -> list[Any]:
    return [*block_of(case), {"type": "mlp", "hidden": 16}]


def pair(path: Path, block: list[Any], **model: Any) -> tuple[LanguageModel, Any]:
    """A checkpoint at `path`, opened by us and by transformers."""
    saved(path, block, **model)
    return Checkpoint.open(path).model().eval(), load(path)


def load(path: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()


def tokens(batch: int = 3, time: int = 13, seed: int = 1) -> Tensor:
    return torch.randint(0, 257, (batch, time), generator=torch.Generator().manual_seed(seed))


def greedy(model: LanguageModel, text: Tensor, count: int) -> Tensor:
    """`count` tokens, each read from the start again: text int64 [1, T]."""
    for _ in range(count):
        text = torch.cat([text, model(text)[0][:, -1].argmax(-1, keepdim=True)], 1)
    return text[0, -count:]

"""Records of trials made by hand, as small as reports take them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def record(
    accuracies: list[float],
    *,
    task: str = "mqar",
    label: str = "delta",
    lr: float = 1e-3,
    seed: int = 0,
    width: int = 64,
    settings: dict[str, Any] | None = None,
    **learner: Any,
) -> dict[str, Any]:
    """A trial tested at 4, 8, 16 ... pairs with these accuracies."""
    trial = {
        "task": task,
        "settings": settings or {},
        "preset": "quick",
        "model": {"width": width, "blocks": 2, "block": [{"type": "delta", "heads": width // 32, **learner}]},
        "label": label,
        "batch": 64,
        "epochs": 1,
        "lr": lr,
        "weight_decay": 0.1,
        "optimizer": "adamw",
        "warmup": 0.05,
        "stop_at": 0.99,
        "tests": 8,
        "seed": seed,
    }
    mean = sum(accuracies) / len(accuracies)
    return {
        "trial": trial,
        "digest": hashlib.sha256(json.dumps(trial).encode()).hexdigest()[:12],
        "version": "0.1.0",
        "accuracy": mean,
        "chance": 0.03125,
        "axis": "pairs",
        "shares": [
            {"settings": {"type": task, "vocab": 64, "pairs": 4 * 2**i}, "accuracy": accuracy}
            for i, accuracy in enumerate(accuracies)
        ],
        "slices": [{"overwritten": 0, "accuracy": mean}, {"overwritten": 1, "accuracy": mean / 2}],
        "ended": "solved" if mean >= 0.99 else "budget",
        "steps": 100 + seed,
        "tokens": 6400,
        "seconds": 12.5,
        "parameters": 13348,
        "state_bytes": 164 * width,
        "kernels": {"delta_rule": ["native"], "rms_norm": ["native", "torch"]},
        "hardware": "A <small> processor",
        "device": "cpu",
        "torch": "2.9.0",
    }


def keep(records: list[dict[str, Any]], folder: Path) -> Path:
    """The records as the files that a sweep leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in records:
        (folder / f"trial-{each['digest']}.json").write_text(json.dumps(each))
    return folder

"""Recipes of tiny sizes that several processes train: every kind of model, objective and optimizer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.training.conftest import WORDS

MLP = {"type": "mlp", "hidden": 32}
ATTENTION = {"type": "attention", "heads": 2, "kv_heads": 1, "qk_norm": False}
SMALL = {"width": 16, "blocks": 2, "block": [{"type": "attention", "heads": 2, "window": 12}, MLP]}
ROUTED = {
    "width": 16,
    "blocks": 4,
    "depth": {"min": 1, "target": 0.6, "hidden": 8},
    "block": [
        {"type": "momentum"},
        {"type": "delta", "heads": 2, "conv": 4},
        {"type": "kalman", "rank": 8},
        {
            "type": "multiscale_memory",
            "tiers": [
                {"every": 1, "size": 8, "rule": "momentum"},
                {"every": 4, "size": 8, "rule": {"type": "test_time", "heads": 2}},
                {"every": 8, "size": 4, "rule": "kalman"},
            ],
        },
        MLP,
        {
            "type": "attention",
            "heads": 2,
            "kv_heads": 1,
            "window": 8,
            "when": {"signal": "confidence", "below": 0.5, "target": 0.25},
        },
    ],
}
"""recipes/60m.yaml in small: learners of every kind, a probe, a depth router."""
ROUTED_STAGES = [
    {"until": 0.2, "sequence": 16, "without": ["multiscale_memory.tier3", "attention", "depth"]},
    {"until": 0.4, "without": ["depth"], "warm": 0.1},
]
EXPERTS = {
    "width": 16,
    "blocks": 2,
    "block": [
        {"type": "delta", "heads": 2},
        {"type": "context_routed_moe", "experts": 6, "top_k": 1, "hidden": 8, "channels": 8},
    ],
}


def write_text(folder: Path) -> Path:
    draw = random.Random(0)
    folder.mkdir()
    for number in range(20):
        words = (draw.choice(WORDS) for _ in range(150))
        (folder / f"{number}.txt").write_text(" ".join(words) + "\n")
    return folder


def write_rows(path: Path, kind: str) -> Path:
    """Rows of different lengths: conversations, preferences, ratings or labelled text."""
    rows = {
        "sft": lambda n: {"prompt": f"What comes after {n}?", "completion": f"It is {n + 1}." * (1 + n % 3)},
        "preferences": lambda n: {
            "prompt": f"What comes after {n}?",
            "chosen": f"It is {n + 1}.",
            "rejected": "No " * (1 + n % 4),
        },
        "kto": lambda n: {"prompt": f"What is {n}?", "completion": f"It is {n}." * (1 + n % 2), "label": n % 3 > 0},
        "classes": lambda n: {"body": f"{n} " + ("warm", "cold", "mild")[n % 3] * (1 + n % 4), "kind": n % 3},
    }[kind]
    path.write_text("".join(json.dumps(rows(number)) + "\n" for number in range(60)))
    return path


class Variants:
    """Recipes as JSON values, whose texts are in `folder`."""

    def __init__(self, folder: Path, steps: int = 50) -> None:
        """Runs that others begin with are `base` and `teacher` in the folder (`beginnings`)."""
        self.folder, self.steps = folder, steps
        self.text = str(write_text(folder / "text"))
        (folder / "mill.md").write_text("# Mill\n\nThe mill grinds wheat. The wheel turns when the sluice is open.\n")
        for kind in ("sft", "preferences", "kto", "classes"):
            write_rows(folder / f"{kind}.jsonl", kind)

    def recipe(self, objective: Any = None, *, model: Any = SMALL, data: Any = None, **train: Any) -> dict[str, Any]:
        values = {
            "name": "tiny",
            "model": model,
            "data": {"sources": self.text, "sequence": 16, "validation": 0.2} | (data or {}),
            "train": {
                "budget": f"{self.steps}steps",
                "batch": 8,
                "micro_batch": 2,
                "optimizer": "adamw",
                "lr": 3e-3,
                "validations": 2,
                "validation_tokens": 512,
                "log_every": 1,
            }
            | train,
            "runtime": {"device": "cpu", "precision": "float32", "threads": 1},
        }
        return values if objective is None else values | {"objective": objective}

    def beginnings(self) -> list[dict[str, Any]]:
        """The jobs that train what other variants begin with."""
        short = {"budget": "5steps", "validations": 1}
        models = {"base": SMALL, TEACHER: TEACHERS_MODEL}
        return [
            {"recipe": self.recipe(model=model, **short), "out": str(self.folder / name)}
            for name, model in models.items()
        ]

    def _rows(self, kind: str, sequence: int = 64) -> dict[str, Any]:
        return {"sources": str(self.folder / f"{kind}.jsonl"), "sequence": sequence}

    def recurrent(self, learner: str) -> dict[str, Any]:
        """The recipe of a model with this learner in every block, whose sequences may be cut."""
        model = {"width": 16, "blocks": 2, "block": [RECURRENT[learner], MLP]}
        rate = {"lr": 1e-3} if learner == "mlstm" else {}  # at 3e-3 the order of sums alone moves its losses by 6e-5
        return self.recipe(model=model, data={"sequence": 32}, stages=[{"until": 0.5, "sequence": 16}], **rate)

    def named(self, name: str) -> dict[str, Any]:
        """The recipe of a variant."""
        if name in RECURRENT:
            return self.recurrent(name)
        recipe: dict[str, Any] = {
            "adamw": lambda: self.recipe(ema=0.9, clip=0.5),
            "muon": lambda: self.recipe(optimizer="muon"),
            "accumulated": lambda: self.recipe(micro_batch=1),
            "carried": lambda: self.recipe(carry=True, stages=[{"until": 0.7, "sequence": 8}]),
            "streamed": lambda: self.recipe(data={"stream": True}),
            "60m": lambda: self.recipe(model=ROUTED, data={"sequence": 32}, stages=ROUTED_STAGES, ema=0.9),
            "experts": lambda: self.recipe(model=EXPERTS),
            "recomputed": lambda: self.recipe(model=ROUTED) | {"runtime": RECOMPUTED},
            "sft": lambda: self.recipe("sft", data=self._rows("sft")),
            "dpo": lambda: self.recipe("dpo", data=self._rows("preferences")),
            "orpo": lambda: self.recipe("orpo", data=self._rows("preferences")),
            "kto": lambda: self.recipe("kto", data=self._rows("kto")),
            "classification": lambda: self.recipe(
                model={
                    "width": 16,
                    "blocks": 2,
                    "block": [{"type": "spectral", "points": 9}, MLP],
                    "head": {"classes": 3},
                },
                data=self._rows("classes", 32) | {"field": "body", "labels": "field:kind"},
            ),
            "lora": lambda: self.recipe(lora={"rank": 2, "targets": ["attention"]}),
            "distill": lambda: self.recipe(
                {"type": "distill", "teacher": str(self.folder / TEACHER), "stages": DISTILL_STAGES},
                model={"from_teacher": {"learner": {"type": "gla", "gate": False}, "keep": 0.25}},
            ),
            "plugin": lambda: self.recipe({"type": "focal", "gamma": 1.0}),
            "document": lambda: self.recipe(
                {"type": "document", "document": str(self.folder / "mill.md")},
                model=SENSITIVE,
                data={"sequence": 64, "validation": 0.25},
                lora={"rank": 2},
                lr=3e-4,  # at 3e-3 losses differ by 7e-4; the order of sums explains only a part of it
            ),
            "dpo lora": lambda: self.recipe("dpo", data=self._rows("preferences"), lora={"rank": 2}),
        }[name]()
        return recipe


ANSWERS = [
    {
        "messages": [{"role": "user", "content": f"Mill {n}?"}, {"role": "assistant", "content": f"The {what}."}],
        "document": f"Mill\n\nIts number {n} is the {what}.",
        "passage": n,
        "kind": "question",
    }
    for n, what in enumerate(["sluice", "wheel", "sack", "key", "stone", "river", "grain", "roof"] * 3)
]
"""What a model would have written about a document; the tiny ones of tests write nothing useful."""
SENSITIVE = {
    "width": 24,
    "blocks": 2,
    "block": [{"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 32}],
    "tie": False,
}
"""A model whose predictions depend on all that it has read, for an adapter that learns a document."""
TEACHER = "teacher"
TEACHERS_MODEL = {"width": 16, "blocks": 4, "block": [ATTENTION, MLP]}
DISTILL_STAGES = {"orientation": 0.34, "alignment": 0.33}
RECOMPUTED = {"device": "cpu", "precision": "float32", "threads": 1, "recompute": True}
RECURRENT: dict[str, Any] = {
    "delta": {"type": "delta", "heads": 2, "conv": 4},
    "mamba2": {"type": "mamba2", "state_size": 8, "head_size": 8},
    "kda": {"type": "kda", "heads": 2},
    "mlstm": {"type": "mlstm", "heads": 2},
    "momentum": {"type": "momentum"},
    "kalman": {"type": "kalman"},
    "rwkv7": {"type": "rwkv7", "head_size": 8},
    "attention": {"type": "attention", "heads": 2, "window": 12},
    "test_time": {"type": "test_time", "heads": 2, "span": 4},
}
"""Learners of models whose sequences are cut; the last two pass their states on from process to process."""
NAMES = [
    "adamw", "muon", "accumulated", "carried", "streamed", "60m", "experts", "recomputed",
    "sft", "dpo", "orpo", "kto", "classification", "distill", "lora", "dpo lora", "plugin", "document",
]  # fmt: skip


def sharded(recipe: dict[str, Any], replicate: int = 1) -> dict[str, Any]:
    """The recipe with its model in shards."""
    return recipe | {"runtime": recipe["runtime"] | {"mesh": {"replicate": replicate, "shard": "auto"}}}


def cut(recipe: dict[str, Any], parts: int, shard: int = 1) -> dict[str, Any]:
    """The recipe with its sequences in parts."""
    return recipe | {"runtime": recipe["runtime"] | {"mesh": {"sequence": parts, "shard": shard}}}

"""A run of any objective that is killed, in each of its stages, ends with the bits of one that never was.

`language_modeling` is in test_resume, `dpo` in test_preference_runs, `document` in documents/test_document.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.training import train
from synthe_core.training.distillation.student import with_student
from tests.paths import ROOT
from tests.processes import run_program, start
from tests.training.conftest import assert_same

pytestmark = pytest.mark.slow

LORA = {"rank": 2, "targets": ["attention"], "dropout": 0.1}
PROGRAM = """
import torch; from pathlib import Path; from synthe_core.recipe.schema import Recipe
from synthe_core.training import train
torch.set_num_threads(1)
out, first = Path("parts"), Path("base")
begins = None if out.exists() or not first.exists() else first
for event in train(Recipe.load("recipe.yaml"), out=out, resume=out.exists(), init=begins): pass
"""
ROWS: dict[str, Any] = {
    "sft": lambda n: {"prompt": f"What comes after {n}?", "completion": f"It is {n + 1}." * (1 + n % 3)},
    "orpo": lambda n: {
        "prompt": f"What comes after {n}?",
        "chosen": f"It is {n + 1}.",
        "rejected": "No " * (1 + n % 4),
    },
    "kto": lambda n: {"prompt": f"What is {n}?", "completion": f"It is {n}." * (1 + n % 2), "label": n % 3 > 0},
}


def steps(run: Path) -> int:
    paths = checkpoints(run) if run.is_dir() else []
    return int(paths[-1].name.removeprefix("step-")) if paths else 0


def losses(run: Path) -> list[tuple[int, str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["phase"], line["loss"]) for line in lines]


def check(recipe: Recipe, folder: Path, kills: tuple[int, ...], init: Path | None = None) -> None:
    """Trains the recipe whole, and in a process that is killed after each of the steps `kills`."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    list(train(recipe, out=folder / "whole", init=init))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for step in kills:
        process = start([sys.executable, "-c", PROGRAM], cwd=folder, env=environment)
        while steps(folder / "parts") < step:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert Checkpoint.open(folder / "parts", latest=True).manifest.step >= step
    run_program([sys.executable, "-c", PROGRAM], cwd=folder, env=environment, check=True)
    assert_same(folder / "whole", folder / "parts")
    assert losses(folder / "whole") == losses(folder / "parts")


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "full"])
@pytest.mark.parametrize("name", ROWS)
def test_conversations_preferences_and_ratings(recipe, name, lora, tmp_path):
    list(train(recipe(budget="2steps", validations=1), out=tmp_path / "base"))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROWS[name](number)) + "\n" for number in range(24)))
    made = recipe(
        data={"sources": str(path), "sequence": 96}, budget="25steps", save_every="1steps", ema=0.9, lora=lora
    )
    config = Recipe.model_validate(made.model_dump() | {"objective": name})
    check(config, tmp_path, (3, 11), init=tmp_path / "base")


@pytest.mark.parametrize("keys", [{}, {"top_k": 9, "cache": True}], ids=["live", "cached"])
def test_every_stage_of_a_distillation(recipe, keys, tmp_path):
    attention = {"type": "attention", "heads": 2, "kv_heads": 1, "qk_norm": False}
    model = {"width": 16, "blocks": 4, "block": [attention, {"type": "mlp", "hidden": 32}]}
    list(train(recipe(model=model, budget="20steps"), out=tmp_path / "teacher"))
    values = recipe(budget="45steps", save_every="1steps", optimizer="adamw", lr=3e-3).model_dump(
        mode="json", exclude_unset=True
    )
    values |= {
        "name": "student",
        "model": {"from_teacher": {"learner": {"type": "gla", "gate": False}, "keep": 0.25}},
        "objective": {"type": "distill", "teacher": str(tmp_path / "teacher"), **keys}
        | {"stages": {"orientation": 0.34, "alignment": 0.33}},
    }
    check(with_student(Recipe.model_validate(values)), tmp_path, (4, 19, 34))


def test_a_classification(recipe, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = ({"body": f"{number} " + ("warm", "cold", "mild")[number % 3], "kind": number % 3} for number in range(150))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    block = [{"type": "spectral", "points": 9}, {"type": "mlp", "hidden": 32}]
    config = recipe(
        model={"block": block, "head": {"classes": 3}},
        data={"sources": str(path), "field": "body", "labels": "field:kind", "sequence": 32},
        budget="25steps",
        save_every="1steps",
    )
    check(config, tmp_path, (3, 11))

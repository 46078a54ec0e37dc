"""PEFT loads an adapter that was trained on preferences, and with it the model prefers what it did in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training import train
from synthe_core.training.example_data import open_example_data
from tests.training.test_preference_runs import preferences

peft = pytest.importorskip("peft")
BETA = 0.5


def held_out(recipe: Recipe) -> Batch:
    work = open_example_data(recipe)
    while True:
        try:
            next(work)
        except StopIteration as end:
            (batch,) = end.value.validation_windows(100, 100)
            return batch


def log_probabilities(model: Any, batch: Batch) -> Tensor:
    """Of the answer of each row."""
    scored = batch.targets != IGNORED
    logprobs = model(batch.inputs)[0].log_softmax(-1)
    return (logprobs.gather(-1, batch.targets.clamp_min(0)[..., None])[..., 0] * scored).sum(1)


@pytest.mark.parametrize(
    "lora", [{"rank": 4}, {"rank": 2, "alpha": 3, "rslora": True, "targets": ["attention"]}], ids=["all", "some"]
)
@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_rewards_under_peft_are_those_of_training(recipe: Any, name: str, lora: dict[str, Any], tmp_path: Path) -> None:
    list(train(recipe(budget="2steps", validations=1), out=tmp_path / "base"))
    data = {"sources": str(preferences(tmp_path / "pairs.jsonl")), "sequence": 96}
    made = recipe(data=data, budget="20steps", lr=2e-2, lora=lora, validation_tokens=10_000)
    config = Recipe.model_validate(made.model_dump() | {"objective": {"type": name, "beta": BETA}})
    list(train(config, out=tmp_path / "run", init=tmp_path / "base"))
    checkpoint = Checkpoint.open(tmp_path / "run", latest=True)
    facts = json.loads((checkpoint.path / "adapter_config.json").read_text())
    assert facts["peft_type"] == "LORA" and facts["r"] == lora["rank"]
    theirs = peft.PeftModel.from_pretrained(Checkpoint.open(tmp_path / "base").model(), str(checkpoint.path)).eval()
    batch = held_out(config)
    with torch.no_grad():
        with_adapter = log_probabilities(theirs.base_model.model, batch)
        with theirs.disable_adapter():
            reference = log_probabilities(theirs.base_model.model, batch)
    if name == "dpo":
        rewards = BETA * (with_adapter - reference)
    else:
        rewards = BETA * with_adapter / (batch.targets != IGNORED).sum(1)
    chosen, rejected = rewards.view(-1, 2).T
    metrics = checkpoint.manifest.metrics
    assert (with_adapter - reference).abs().max() > 0.1
    assert metrics["rewards/chosen"] == pytest.approx(float(chosen.mean()), abs=1e-4)
    assert metrics["rewards/rejected"] == pytest.approx(float(rejected.mean()), abs=1e-4)
    assert metrics["margin"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-4)
    assert metrics["accuracy"] == pytest.approx(float((chosen > rejected).float().mean()))

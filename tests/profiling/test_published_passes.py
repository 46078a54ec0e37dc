"""The memory of published models that transformers runs, estimated without storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.hardware.probe import probe
from synthe_core.model.classifier import build_model
from synthe_core.profiling.allocations import measure_allocations
from synthe_core.profiling.footprint import Estimate
from synthe_core.profiling.published_passes import published_passes
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe
from tests.interop.huggingface.backend_families import family

pytest.importorskip("transformers")
from synthe_core.interop.huggingface.model import HuggingFaceModel
from synthe_core.interop.published_source import PublishedSource
from synthe_core.storage.checkpoint import Checkpoint

ROWS, LENGTH = 3, 48
SLACK = 0.15  # kernels of the processor take a little more or less than shapes say


def recipe_of(path: Path) -> Recipe:
    return Checkpoint(PublishedSource(HuggingFaceModel(path))).recipe


@pytest.mark.parametrize("kind", ["Zamba2", "Mixtral", "DeepseekV3", "Qwen3_5", "Mamba2", "Gemma2"])
def test_a_pass_without_storage_counts_what_a_real_one_allocates(tmp_path: Path, kind: str) -> None:
    recipe = recipe_of(family(tmp_path / "m", kind))
    estimated = published_passes(recipe, vocabulary_of(recipe), LENGTH, train=True)
    model: Any = build_model(recipe.model, vocabulary_of(recipe)).train()
    tokens = torch.randint(model.vocab, (ROWS, LENGTH))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.loss(tokens, tokens)[0].objective.backward()
    results: list[Any] = []
    forward = measure_allocations(lambda: results.append(model.loss(tokens, tokens)))
    backward = measure_allocations(lambda: results[0][0].objective.backward())
    assert estimated.saved.at(1, ROWS) == pytest.approx(forward.retained, rel=SLACK)
    peak = max(forward.peak, forward.retained + backward.peak)
    assert estimated.training(1, ROWS) == pytest.approx(peak, rel=SLACK)


def test_the_estimate_has_parameters_optimizer_and_state(tmp_path: Path) -> None:
    recipe = recipe_of(family(tmp_path / "m", "Zamba2"))
    estimate = Estimate(recipe, probe())
    parameters = sum(p.numel() for p in build_model(recipe.model, vocabulary_of(recipe)).parameters())
    training, serving = estimate.training(2), estimate.serving(2, 40)
    assert training.parts["parameters"] == pytest.approx(4 * parameters, rel=0.01)
    assert training.parts["optimizer"] == 8 * parameters
    model: Any = estimate.model
    assert serving.parts["state"] == 2 * model.state_bytes(40)
    less = Estimate(
        recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"recompute": True})}), probe()
    )
    assert less.training(2).parts["activations"] < training.parts["activations"]

"""The loss of an early exit: that of the model without its later blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.data.stream import Batch
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.speculation.model_drafts import EarlyExitProposer
from synthe_core.model.classifier import build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import save, weights
from synthe_core.storage.manifest import Manifest
from synthe_core.storage.yaml_reader import parse_yaml
from synthe_core.training.objectives import objective_for
from synthe_core.training.objectives.objective import ObjectiveContext

BLOCK: list[Any] = [{"type": "attention", "heads": 2}, {"type": "mlp", "hidden": 20}]
VOCAB = 31


def model_of(blocks: int) -> LanguageModel:
    torch.manual_seed(0)
    model = build_model(ModelSpec.model_validate({"width": 8, "blocks": blocks, "block": BLOCK}), VOCAB).double()
    assert isinstance(model, LanguageModel)
    return model


def batch() -> Batch:
    tokens = torch.randint(VOCAB, (3, 10), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[0, :4] = IGNORED
    return Batch(tokens[:, :-1].contiguous(), targets)


def loss_of(model: LanguageModel, early_exit: dict[str, Any] | None) -> Any:
    objective = objective_for(model, {"type": "language_modeling", "early_exit": early_exit})  # type: ignore[arg-type]
    return objective(model, batch(), ObjectiveContext())


@pytest.mark.parametrize("recompute", [False, True])
def test_it_is_the_loss_of_the_first_blocks(recompute: bool) -> None:
    model, first = model_of(3), model_of(2)
    model.recompute = recompute
    first.load_state_dict({name: value for name, value in model.state_dict().items() if ".2." not in name})
    ours, theirs = loss_of(model, {"blocks": 2, "weight": 0.3}), loss_of(first, None)
    assert torch.equal(ours.total, loss_of(model, None).total)
    torch.testing.assert_close(ours.auxiliary["early_exit"], 0.3 * theirs.total / theirs.scored)
    ours.auxiliary["early_exit"].backward()
    theirs.objective.backward()
    gradients = dict(model.named_parameters())
    for name, parameter in first.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name].grad, 0.3 * parameter.grad)
    assert all(gradient.grad is None for name, gradient in gradients.items() if name.startswith("blocks.2."))


def test_validation_has_no_such_loss() -> None:
    with torch.no_grad():
        assert "early_exit" not in loss_of(model_of(3), {"blocks": 2}).auxiliary


def recipe(**model: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"width": 8, "blocks": 3, "block": BLOCK, **model},
            "objective": {"type": "language_modeling", "early_exit": {"blocks": 2}},
        }
    )


def test_a_recipe_says_where_the_exit_is() -> None:
    assert recipe().early_exit_blocks == 2
    assert Recipe.model_validate({"model": {"width": 8, "blocks": 3, "block": BLOCK}}).early_exit_blocks is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"blocks": 2}, r"objective.early_exit.blocks: the model has 2 blocks"),
        ({"depth": {"min": 1, "target": 0.5}}, r"objective.early_exit: each token decides how many blocks it runs"),
    ],
)
def test_models_without_such_an_exit_are_refused(model: dict[str, Any], message: str) -> None:
    values = {
        "model": {"width": 8, "blocks": 3, "block": BLOCK, **model},
        "objective": {"type": "language_modeling", "early_exit": {"blocks": 2}},
    }
    with pytest.raises(InputError, match=message):
        Recipe.from_source(parse_yaml(json.dumps(values), "recipe"))


def test_a_trained_exit_drafts_by_default(tmp_path: Path) -> None:
    model = LanguageModel(recipe().model, 257)
    path = tmp_path / "model"
    save(path, recipe=recipe(), vocab=257, tensors=weights(model), manifest=Manifest(), tokenizer=ByteTokenizer())
    loaded = LoadedModel.load(path, "model")
    assert EarlyExitProposer(loaded).blocks == 2 and EarlyExitProposer(loaded, 1).blocks == 1

"""What a recipe is said to weigh is what its model weighs."""

from __future__ import annotations

import pytest
import torch

from synthe_core.accounting import account
from synthe_core.layers import LAYERS
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe import Recipe
from synthe_core.state import nbytes
from synthe_core.yaml_text import parse


def recipe(learner: str) -> Recipe:
    return Recipe.from_source(
        parse(f"{{model: {{width: 64, blocks: 2, block: [{learner}]}}, data: {{sequence: 9}}}}", "test")
    )


@pytest.mark.parametrize("learner", list(LAYERS))
def test_state_bytes_are_those_of_a_real_state(learner: str) -> None:
    counted = account(recipe(learner))
    model = LanguageModel(recipe(learner).model, 257)
    assert set(counted.state_bytes) == {1, 9, 72}
    for tokens, size in counted.state_bytes.items():
        with torch.no_grad():
            _, state = model.next_logits(torch.zeros(1, tokens, dtype=torch.int64))
        assert nbytes(state) == size


@pytest.mark.parametrize("learner", list(LAYERS))
def test_parameters_are_those_of_the_real_model(learner: str) -> None:
    counted = account(recipe(learner))
    model = LanguageModel(recipe(learner).model, 257)
    assert sum(counted.by_learner.values()) == counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.by_learner[learner] == sum(p.numel() for b in model.blocks for p in b.learners.parameters())
    assert counted.flops == model.flops(9) > 0


def test_a_tokenizer_still_to_be_trained_counts_as_asked() -> None:
    source = parse("{model: {width: 64, blocks: 1, block: [mlp]}, data: {tokenizer: {type: bpe, vocab: 1000}}}", "test")
    assert account(Recipe.from_source(source)).vocabulary == 1000

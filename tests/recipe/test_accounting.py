"""The size that a recipe states is that of its model."""

from __future__ import annotations

import pytest
import torch

from synthe_core.layers import LAYERS
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.accounting import account
from synthe_core.recipe.schema import Recipe
from synthe_core.state import nbytes
from synthe_core.storage.yaml_reader import parse_yaml

each_causal_learner = pytest.mark.parametrize("learner", [name for name in LAYERS if LAYERS[name].causal])


def recipe(learner: str) -> Recipe:
    return Recipe.from_source(
        parse_yaml(f"{{model: {{width: 64, blocks: 2, block: [{learner}]}}, data: {{sequence: 9}}}}", "test")
    )


@each_causal_learner
def test_state_bytes_are_those_of_a_real_state(learner: str) -> None:
    counted = account(recipe(learner))
    model = LanguageModel(recipe(learner).model, 257)
    assert set(counted.state_bytes) == {1, 9, 72}
    for tokens, size in counted.state_bytes.items():
        with torch.no_grad():
            _, state = model.next_logits(torch.zeros(1, tokens, dtype=torch.int64))
        assert nbytes(state) == size


@each_causal_learner
def test_parameters_are_those_of_the_real_model(learner: str) -> None:
    counted = account(recipe(learner))
    model = LanguageModel(recipe(learner).model, 257)
    assert sum(counted.by_learner.values()) == counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.by_learner[learner] == sum(p.numel() for b in model.blocks for p in b.learners.parameters())
    assert counted.flops == model.flops(9) > 0


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("keys", ["head_bias: true", "norm: layer, positions: 16", "norm: layer_no_affine"])
def test_what_is_outside_the_learners_is_counted(keys: str, tie: bool) -> None:
    text = f"{{model: {{width: 64, blocks: 2, block: [mlp], tie: {tie}, {keys}}}, data: {{sequence: 9}}}}"
    spec = Recipe.from_source(parse_yaml(text, "test"))
    counted = account(spec)
    model = LanguageModel(spec.model, 257)
    assert sum(counted.by_learner.values()) == counted.parameters == sum(p.numel() for p in model.parameters())


@each_causal_learner
def test_only_learners_that_route_leave_parameters_idle(learner: str) -> None:
    counted = account(recipe(learner))
    routes = learner in ("experts", "context_routed_moe")
    assert (counted.active_parameters < counted.parameters) == routes
    assert ("active_parameters" in counted.as_dict()) == routes


def test_unselected_experts_are_idle_in_every_block() -> None:
    routed = "{type: context_routed_moe, experts: 5, top_k: 1, hidden: 7}"
    block = "{type: experts, experts: 8, top_k: 2, hidden: 10}, mlp, " + routed
    counted = account(recipe(block))
    assert counted.parameters - counted.active_parameters == 2 * (6 * 3 * 10 * 64 + 4 * 3 * 7 * 64)
    assert counted.as_dict()["active_parameters"] == counted.active_parameters


def test_a_learner_inside_another_is_counted_once() -> None:
    model = LanguageModel(recipe("context_routed_moe").model, 257)
    learners = [block.learners[0] for block in model.blocks]
    assert model.learners == learners
    assert model.flops(9) == sum(each.flops(9) for each in learners) + 2 * 64 * 257
    assert all(each.flops(9) > each.context.flops(9) > 0 for each in learners)


def test_a_tokenizer_still_to_be_trained_counts_with_its_configured_size() -> None:
    source = parse_yaml(
        "{model: {width: 64, blocks: 1, block: [mlp]}, data: {tokenizer: {type: bpe, vocab: 1000}}}", "test"
    )
    assert account(Recipe.from_source(source)).vocabulary == 1000

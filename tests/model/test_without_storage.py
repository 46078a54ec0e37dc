"""Models that are built without storage for what is large."""

from __future__ import annotations

import sys

import pytest
import torch

from synthe_core.model.classifier import build_model
from synthe_core.model.without_storage import FACTORIES, MIN_NUMBERS, shapes_only, without_storage
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import weights
from tests.paths import RECIPES, ROOT
from tests.processes import run_program

PROGRAM = """
import sys
from synthe_core.model.classifier import build_model
from synthe_core.model.without_storage import shapes_only
from synthe_core.recipe.schema import Recipe
from tests.paths import RECIPES
for path in sorted({*RECIPES.glob("*.yaml"), *RECIPES.glob("baselines/*.yaml")}):
    with shapes_only():
        build_model(Recipe.load(path).model, 300)
    assert not {"torch._dynamo", "sympy"} & sys.modules.keys(), path
"""


@pytest.mark.parametrize("name", ["tiny", "synapse-tiny", "synthe-tiny", "thl-tiny", "tlm-gpt-tiny"])
def test_shapes_are_those_of_the_model(name):
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    with shapes_only():
        made = weights(build_model(recipe.model, 300))
    whole = weights(build_model(recipe.model, 300))
    assert {key: (t.shape, t.dtype) for key, t in made.items()} == {key: (t.shape, t.dtype) for key, t in whole.items()}
    for key, tensor in made.items():
        assert tensor.is_meta == (tensor.numel() >= MIN_NUMBERS), key


def test_a_hostile_size_takes_no_memory():
    values = Recipe.load(RECIPES / "tiny.yaml").model_dump()
    values["model"]["width"] = 6000
    with shapes_only():
        model = build_model(Recipe.model_validate(values).model, 1 << 40)
    assert model.embedding.weight.shape == (1 << 40, 6000)


CALLS = {
    "empty": lambda n: torch.empty(n, 1),
    "zeros": lambda n: torch.zeros((n, 2)),
    "ones": lambda n: torch.ones(size=(n,)),
    "rand": lambda n: torch.rand(n, device="cpu"),
    "randn": lambda n: torch.randn(n, requires_grad=True),
    "full": lambda n: torch.full((n,), 2.0),
    "eye": lambda n: torch.eye(n, 3),
    "eye of a square": lambda n: torch.eye(n),
    "arange": lambda n: torch.arange(n).float(),
    "arange of two": lambda n: torch.arange(1, n, dtype=torch.float32),
    "linspace": lambda n: torch.linspace(0, 1, n),
    "logspace": lambda n: torch.logspace(0, 1, steps=n),
    "repeat": lambda n: torch.ones(3).repeat(n, 2, 1),
    "repeat by a sequence": lambda n: torch.ones(3).repeat((n, 1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_factory_makes_small_tensors_with_their_values(name):
    call, many = CALLS[name], MIN_NUMBERS + 1
    with shapes_only():
        small, large = call(5), call(many)
    assert not small.is_meta and large.is_meta
    plain = call(many)
    assert (large.shape, large.dtype) == (plain.shape, plain.dtype)
    if name not in ("empty", "rand", "randn"):
        assert torch.equal(small, call(5))


def test_every_factory_is_tried():
    assert {factory.__name__ for factory in FACTORIES} <= CALLS.keys()


def test_a_model_to_be_loaded_has_its_constants():
    with without_storage():
        assert torch.empty(MIN_NUMBERS).is_meta
        assert not torch.ones(MIN_NUMBERS).is_meta
        assert not torch.logspace(0, 1, steps=MIN_NUMBERS).is_meta


def test_the_sizes_of_every_recipe_are_checked_without_the_compiler():
    run_program([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True)

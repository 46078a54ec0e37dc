"""Building without drawing."""

from __future__ import annotations

import pytest
import torch

from synthe_core.model.classifier import build_model
from synthe_core.model.skip_init import DRAWS, skip_init
from synthe_core.recipe.schema import Recipe
from tests.paths import RECIPES

TINY = RECIPES / "tiny.yaml"


def test_nothing_is_drawn():
    recipe = Recipe.load(TINY)
    with skip_init():
        before = torch.get_rng_state()
        build_model(recipe.model, 300)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__qualname__)
def test_a_tensor_stays_as_it_is(draw):
    tensor = torch.full((3, 3), 2.0)
    with skip_init():
        assert draw(tensor) is tensor
    assert torch.equal(tensor, torch.full((3, 3), 2.0))
    assert not torch.equal(draw(tensor), torch.full((3, 3), 2.0))

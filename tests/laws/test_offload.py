"""A model whose weights are read in each pass computes what it computes with all of them in memory, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.schema import Recipe
from synthe_core.state import named_leaves
from synthe_core.storage.checkpoint import Checkpoint, save, weights
from synthe_core.storage.manifest import Manifest
from tests.laws.entries import CAUSAL, WIDTH, block_of, case_name
from tests.offload.conftest import Open, opened

__all__ = ["opened"]
VOCAB, TIME = 31, 19


@pytest.mark.parametrize("case", CAUSAL, ids=case_name)
def test_it_is_what_it_is_in_memory(case, tmp_path: Path, opened: Open) -> None:
    block = [*block_of(case), {"type": "mlp", "hidden": 16}]
    recipe = Recipe.model_validate({"model": {"width": WIDTH, "blocks": 2, "block": block}})
    torch.manual_seed(0)
    made = LanguageModel(recipe.model, VOCAB)
    save(tmp_path / "model", recipe=recipe, vocab=VOCAB, tensors=weights(made), manifest=Manifest())
    whole, read = Checkpoint.open(tmp_path / "model").model().eval(), opened(tmp_path / "model")
    assert read.offload.streamed is not None
    text = torch.randint(0, VOCAB, (2, TIME))
    with torch.no_grad(), ExecutionContext(batch_invariant=True).activate():
        state = other = None
        for piece in text.split([TIME - 3, 1, 2], 1):
            expected, state = whole(piece, state)
            logits, other = read(piece, other)
            assert torch.equal(logits, expected)
        for (name, a), (_, b) in zip(named_leaves(state), named_leaves(other), strict=True):
            assert torch.equal(a, b), name

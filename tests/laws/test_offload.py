"""A model whose weights are read in each pass computes what it computes with all of them in memory, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.inference.loaded_model import LoadedModel
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


@pytest.mark.parametrize("case", CAUSAL, ids=case_name)
def test_tokens_are_decoded_as_in_memory(case, tmp_path: Path, opened: Open) -> None:
    """In one call of C where the model has such passes, which is cut where weights are read."""
    _decode(tmp_path, opened, [*block_of(case), {"type": "mlp", "hidden": 16}])


@pytest.mark.parametrize(
    "residual",
    [
        {"norm": "shared"},
        {"parallel": True},
        {"norm": "post"},
        {"norm": "both", "scale": 0.5},
        {"norm": "stream"},
        {"parallel": True, "input_scale": 0.7},
    ],
    ids=str,
)
def test_residuals_are_as_in_memory(residual: dict[str, Any], tmp_path: Path, opened: Open) -> None:
    block = [{"type": "attention", "heads": 4}, {"type": "mlp", "hidden": 16, "residual": residual}]
    _decode(tmp_path, opened, block)


def _decode(tmp_path: Path, opened: Open, block: list[Any]) -> None:
    recipe = Recipe.model_validate({"model": {"width": WIDTH, "blocks": 2, "block": block}})
    torch.manual_seed(0)
    made = LanguageModel(recipe.model, VOCAB)
    save(tmp_path / "model", recipe=recipe, vocab=VOCAB, tensors=weights(made), manifest=Manifest())
    context = ExecutionContext(batch_invariant=True)
    models = [
        LoadedModel("model", each.eval().requires_grad_(False), ByteTokenizer(), context=context)
        for each in (Checkpoint.open(tmp_path / "model").model(), opened(tmp_path / "model"))
    ]
    text = torch.randint(0, VOCAB, (2, TIME))
    with torch.inference_mode():
        states: list[Any] = [None, None]
        for piece in text.split([TIME - 3, 1, 1, 1], 1):
            hidden = []
            for number, each in enumerate(models):
                with each.activate():
                    if states[number] is None:
                        states[number] = each.model.init_state(2)
                    output = each.forward(piece, states[number])
                hidden.append(output.hidden)
                states[number] = output.state
            assert models[0].fused_refusal == models[1].fused_refusal
            assert torch.equal(*hidden)

"""Texts that begin with the pathways of a session."""

from __future__ import annotations

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.pathways import set_pathway_prior
from synthe_core.model.session import Session
from synthe_core.model.spec import ModelSpec

ROUTED = {"type": "context_routed_moe", "experts": 4, "hidden": 4, "channels": 6, "bias": True}


def model_of(*block: dict) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelSpec.model_validate({"width": 12, "blocks": 2, "block": list(block)}), 31)


def test_a_new_text_begins_with_the_strengths_and_with_nothing_else(tmp_path) -> None:
    model = model_of({"type": "momentum"}, ROUTED)
    for block in model.blocks:
        torch.nn.init.normal_(block.learners[1].bias)
    tokens = torch.randint(31, (2, 40))
    with torch.no_grad():
        _, state = model.next_logits(tokens[:, :25])
        Session(state, tokens[:, 25]).save(tmp_path / "s.safetensors", model)
        before, _ = model(tokens[:, 25:], None)
        set_pathway_prior(model, Session.load(tmp_path / "s.safetensors", model))
        begun = model.init_state(3)
        after, _ = model(tokens[:, 25:], None)
    for fresh, used in zip(begun.blocks, state.blocks, strict=True):
        assert torch.equal(fresh[1].strength, used[1].strength.mean(0).expand(3, -1))
        assert all(not leaf.any() for leaf in (fresh[0].average, *fresh[1].context))
    assert begun.position.tolist() == [0, 0, 0] and (after - before).abs().max() > 1e-4
    assert not any("prior" in name for name in model.state_dict())  # it belongs to the process, not to the weights


def test_a_model_without_pathways_is_refused(tmp_path) -> None:
    model = model_of({"type": "momentum"})
    with pytest.raises(InputError, match="no context_routed_moe"):
        set_pathway_prior(model, Session(model.init_state(1), torch.zeros(1, dtype=torch.int64)))

"""What a pass computes once, and what the second run of a recomputed block sees."""

from __future__ import annotations

import torch

from synthe_core.layers import attention, rope
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.dispatch import OPS, use_kernels

BLOCK = [{"type": "attention", "heads": 2}, {"type": "delta", "heads": 2}]


def model_of(recompute: bool = False, **settings: object) -> LanguageModel:
    torch.manual_seed(0)
    spec = ModelSpec.model_validate({"width": 16, "blocks": 3, "block": BLOCK, "tie": True} | settings)
    return LanguageModel(spec, 31, recompute)


def test_rotary_angles_are_computed_once_for_all_blocks(monkeypatch):
    calls = []
    real = rope.rotary_angles
    monkeypatch.setattr(rope, "rotary_angles", lambda *given: calls.append(given) or real(*given))
    model = model_of()
    model(torch.randint(31, (2, 5)))
    assert len(calls) == 1
    assert attention.pass_angles is rope.pass_angles


def test_a_recomputed_block_runs_in_the_context_of_its_pass():
    """The gradient is computed after the block of the context has ended, on CUDA by another thread."""
    model = model_of(recompute=True)
    tokens = torch.randint(31, (2, 9))
    with use_kernels(delta_rule="reference"):
        loss = model.loss(tokens, tokens)[0].objective
    OPS["delta_rule"].used.clear()
    loss.backward()
    assert OPS["delta_rule"].used == {"reference"}

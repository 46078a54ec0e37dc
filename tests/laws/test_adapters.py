"""What must hold of a low-rank adapter on every learner: the adapted matrix reaches all that it computes.

A model that wears an adapter is compared with one whose matrices are W + s B A, in float64: what is called, what is
read by a fused kernel and what is read a few rows at a time must all be adapted.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from synthe_core.adapters.lora import Adapter, Folded, LowRank, put_on, take_off, wearing, worn, worn_tensors
from synthe_core.adapters.spec import LoraSpec
from synthe_core.adapters.targets import find, fresh
from synthe_core.layers import LAYERS
from synthe_core.model.classifier import build_model
from synthe_core.model.language_model import ModelSpec
from synthe_core.state import named_leaves
from synthe_core.storage.checkpoint import weights
from tests.laws.entries import CASES, FIRST, WIDTH, block_of, case_name

VOCAB, TIME = 31, 45
each_setting = pytest.mark.parametrize("case", CASES, ids=case_name)
each_learner = pytest.mark.parametrize("case", FIRST, ids=case_name)


def model_of(case):
    """Two blocks of the learner, each before an MLP, whose every parameter is away from its initial symmetry."""
    torch.manual_seed(0)
    block = [*block_of(case), {"type": "mlp", "hidden": 16}]
    head = {} if LAYERS[case["type"]].causal else {"head": {"type": "classify", "classes": 3}}
    model = build_model(ModelSpec.model_validate({"width": WIDTH, "blocks": 2, "block": block} | head), VOCAB).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def drawn(model, seed=1, size=0.3):
    """An adapter of every matrix, no factor of which is zero."""
    torch.manual_seed(seed)
    adapter = fresh(model, LoraSpec(rank=3, alpha=1.5))
    maps = {
        name: LowRank(change.a.double(), size * torch.randn_like(change.b).double(), change.scale)
        for name, change in adapter.maps.items()
    }
    return Adapter(maps)


def folded(model, adapter):
    other = copy.deepcopy(model)
    tensors = Folded(weights(model), adapter)
    with torch.no_grad():
        for name, own in weights(other).items():
            own.copy_(tensors[name])
    return other


def tokens(seed=2):
    torch.manual_seed(seed)
    return torch.randint(0, VOCAB, (2, TIME + 1))


def loss_of(model, text):
    inputs, targets = text[:, :-1], text[:, 1:]
    if model.spec.head is not None:
        targets = torch.full_like(targets, -100)
        targets[:, -1] = torch.arange(2)
    loss, state = model.loss(inputs, targets)
    return loss.objective, state


@each_setting
def test_an_adapted_model_is_the_model_of_the_adapted_matrices(case):
    model, text = model_of(case), tokens()
    adapter = drawn(model)
    other = folded(model, adapter)
    plain, _ = loss_of(model, text)
    put_on(model, adapter, learns=True)
    ours, state = loss_of(model, text)
    theirs, expected = loss_of(other, text)
    assert abs(float((plain - ours).detach())) > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for (_, one), (_, two) in zip(named_leaves(state), named_leaves(expected), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)

    ours.backward()
    theirs.backward()
    matrices = dict(other.named_parameters())
    for name, module in worn(model).items():
        change, gradient = adapter.maps[name], matrices[f"{name}.weight"].grad
        if gradient is None:  # it took no part in this pass
            assert module.lora_B.weight.grad is None
            continue
        for factor, wanted in (
            (module.lora_A.weight, change.scale * change.b.T @ gradient),
            (module.lora_B.weight, change.scale * gradient @ change.a.T),
        ):
            torch.testing.assert_close(factor.grad, wanted, rtol=1e-7, atol=1e-10, msg=name)
        assert module._parameters["weight"].grad is None


@each_learner
def test_an_adapter_comes_off_to_the_last_bit(case):
    model, text = model_of(case).float(), tokens()
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    with torch.no_grad():
        plain, state = loss_of(model, text)
        put_on(model, fresh(model, LoraSpec(rank=2)))
        assert torch.equal(loss_of(model, text)[0], plain)  # a fresh one changes nothing
        put_on(model, drawn(model))
        assert not torch.equal(loss_of(model, text)[0], plain)
        with wearing(model, None):
            assert torch.equal(loss_of(model, text)[0], plain)
        assert not torch.equal(loss_of(model, text)[0], plain)
        take_off(model)
        again, after = loss_of(model, text)
    assert torch.equal(again, plain)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(named_leaves(after), named_leaves(state), strict=True))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert kinds == {name: type(module) for name, module in model.named_modules()}


@each_learner
def test_recomputing_activations_changes_no_gradient_of_an_adapter(case):
    gradients = []
    for recompute in (False, True):
        model = model_of(case)
        model.recompute = recompute
        put_on(model, drawn(model), learns=True)
        loss_of(model, tokens())[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-12, atol=1e-14, msg=name)


@each_learner
def test_every_matrix_of_the_blocks_is_a_target(case):
    model = model_of(case)
    found = find(model, ["all-linear"])
    assert set(found) == {n for n, m in model.blocks.named_modules(prefix="blocks") if isinstance(m, nn.Linear)}
    put_on(model, fresh(model, LoraSpec(rank=2)), learns=True)
    assert set(worn_tensors(model)) == {name for name, p in model.named_parameters() if p.requires_grad}

"""What must hold of a low-rank adapter on every learner: the adapted matrix reaches all that it computes.

A model with an adapter attached is compared with one whose matrices are W + s B A, in float64: what is called, what is
read by a fused kernel and what is read a few rows at a time must all be adapted.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from synthe_core.adapters.lora import FACTORS, Adapter, LowRank, MergedTensors
from synthe_core.adapters.lora_linear import (
    DEFAULT,
    adapter_parameters,
    attach,
    detach,
    lora_linears,
    with_adapter,
)
from synthe_core.adapters.spec import LoraSpec
from synthe_core.adapters.targets import find_targets, new_adapter
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.layers import LAYERS
from synthe_core.layers.adapter_batch import NONE, AdapterBatch, use_adapters
from synthe_core.model.classifier import build_model
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.linear import products_are_batch_invariant
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


def random_adapter(model, seed=1, size=0.3):
    """An adapter of every matrix, no factor of which is zero."""
    torch.manual_seed(seed)
    adapter = new_adapter(model, LoraSpec(rank=3, alpha=1.5))
    maps = {
        name: LowRank(change.lora_A.double(), size * torch.randn_like(change.lora_B).double(), change.scaling)
        for name, change in adapter.maps.items()
    }
    return Adapter(maps)


def merged(model, adapter):
    other = copy.deepcopy(model)
    tensors = MergedTensors(weights(model), adapter)
    with torch.no_grad():
        for name, own in weights(other).items():
            own.copy_(tensors[name])
    return other


def tokens(seed=2, rows=2):
    torch.manual_seed(seed)
    return torch.randint(0, VOCAB, (rows, TIME + 1))


def loss_of(model, text):
    inputs, targets = text[:, :-1], text[:, 1:]
    if model.spec.head is not None:
        targets = torch.full_like(targets, -100)
        targets[:, -1] = torch.arange(2)
    loss, state = model.loss(inputs, targets)
    return loss.objective, state


def largest_change(before, after):
    """The largest difference of two lists of named tensors."""
    pairs = zip(before, after, strict=True)
    return max(float((one.double() - two.double()).detach().abs().max()) for (_, one), (_, two) in pairs if one.numel())


@each_setting
def test_an_adapted_model_is_the_model_of_the_adapted_matrices(case):
    model, text = model_of(case), tokens()
    adapter = random_adapter(model)
    other = merged(model, adapter)
    plain, without = loss_of(model, text)
    attach(model, adapter, trainable=True)
    ours, state = loss_of(model, text)
    theirs, expected = loss_of(other, text)
    assert largest_change([("loss", plain), *named_leaves(without)], [("loss", ours), *named_leaves(state)]) > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for (_, one), (_, two) in zip(named_leaves(state), named_leaves(expected), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)

    ours.backward()
    theirs.backward()
    matrices = dict(other.named_parameters())
    for name, module in lora_linears(model).items():
        change, gradient = adapter.maps[name], matrices[f"{name}.weight"].grad
        a, b = (getattr(module, factor)[str(DEFAULT)].weight for factor in FACTORS)
        if gradient is None:  # it took no part in this pass
            assert b.grad is None
            continue
        for factor, expected in (
            (a, change.scaling * change.lora_B.T @ gradient),
            (b, change.scaling * gradient @ change.lora_A.T),
        ):
            torch.testing.assert_close(factor.grad, expected, rtol=1e-7, atol=1e-10, msg=name)
        assert module.base_weight.grad is None


def outputs_of(model, text, lengths):
    """What each row [B, T] gives: a language model's last norm at its real tokens of a padded pass and at three tokens
    after it, one by one; an encoder's logits."""
    if model.spec.head is not None:
        return [[logits] for logits in model.read(text, lengths)[0]]
    hidden, state, _ = model.hidden(text[:, :-3], None, lengths)
    outputs = [[row[:length]] for row, length in zip(hidden, lengths, strict=True)]
    for step in range(-3, 0):
        hidden, state, _ = model.hidden(text[:, step][:, None], state)
        for row, each in zip(outputs, hidden, strict=True):
            row.append(each)
    return outputs


INDICES = (2, NONE, 1, 2, 1, NONE)


def compare_with_each_alone(model, check):
    """A batch of rows with two adapters, the second of which leaves some maps alone, or none; and each row alone."""
    adapters = [random_adapter(model, seed) for seed in (1, 5)]
    adapters[1] = Adapter(dict(list(adapters[1].maps.items())[1:]))
    for slot, adapter in enumerate(adapters, start=1):
        attach(model, adapter, slot=slot)
    text, lengths = tokens(rows=len(INDICES)), torch.tensor([TIME - 2, 7, 31, 1, TIME - 2, 20])
    with torch.no_grad(), use_adapters(AdapterBatch(INDICES)):
        together = outputs_of(model, text, lengths)
    detach(model)
    assert not lora_linears(model)
    for row, index in enumerate(INDICES):
        with torch.no_grad(), with_adapter(model, None if index == NONE else adapters[index - 1]):
            alone = outputs_of(model, text[row : row + 1], lengths[row : row + 1])
            for many, one in zip(together[row], alone[0], strict=True):
                check(many, one)


@each_setting
def test_rows_with_different_adapters_equal_each_alone(case):
    def check(many, one):
        torch.testing.assert_close(many, one, rtol=1e-9, atol=1e-10)

    compare_with_each_alone(model_of(case).eval(), check)


@each_learner
def test_rows_with_different_adapters_equal_each_alone_to_the_bit(case):
    """Where arithmetic does not depend on the other rows, as in the engine."""
    if not LAYERS[case["type"]].causal:
        pytest.skip("the engine serves no encoders")
    if not products_are_batch_invariant():
        pytest.skip("products of this processor depend on their rows")

    def check(many, one):
        assert torch.equal(many, one)

    with ExecutionContext(batch_invariant=True).activate():
        compare_with_each_alone(model_of(case).float().eval(), check)


@each_learner
def test_an_adapter_comes_off_to_the_last_bit(case):
    model, text = model_of(case).float(), tokens()
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    with torch.no_grad():
        plain, state = loss_of(model, text)
        attach(model, new_adapter(model, LoraSpec(rank=2)))
        assert torch.equal(loss_of(model, text)[0], plain)  # a new one changes nothing
        attach(model, random_adapter(model))
        assert not torch.equal(loss_of(model, text)[0], plain)
        with with_adapter(model, None):
            assert torch.equal(loss_of(model, text)[0], plain)
        assert not torch.equal(loss_of(model, text)[0], plain)
        detach(model)
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
        attach(model, random_adapter(model), trainable=True)
        loss_of(model, tokens())[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-12, atol=1e-14, msg=name)


@each_learner
def test_every_matrix_of_the_blocks_is_a_target(case):
    model = model_of(case)
    targets = find_targets(model, ["all-linear"])
    assert set(targets) == {n for n, m in model.blocks.named_modules(prefix="blocks") if isinstance(m, nn.Linear)}
    attach(model, new_adapter(model, LoraSpec(rank=2)), trainable=True)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert set(map(id, adapter_parameters(model).values())) == set(map(id, learning))

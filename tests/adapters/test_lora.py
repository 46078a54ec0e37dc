"""Adapters as values: several over one model, precision, a compiled model."""

from __future__ import annotations

import copy

import pytest
import torch

from synthe_core.adapters.lora import LowRank
from synthe_core.adapters.lora_linear import LoRALinear, adapter_parameters, attach, detach, lora_linears, with_adapter
from synthe_core.adapters.spec import LoraSpec
from synthe_core.errors import InputError
from synthe_core.storage.checkpoint import Checkpoint
from tests.adapters.conftest import random_adapter

TOKENS = torch.arange(24).view(2, 12) * 7 % 257


def test_several_adapters_over_one_model(base):
    model = Checkpoint.open(base).model().eval()
    storage = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    first, second = random_adapter(base, LoraSpec(rank=4), 1), random_adapter(base, LoraSpec(rank=2, targets="mlp"), 2)
    with torch.no_grad():
        plain = model(TOKENS)[0]
        attach(model, first)
        with_first = model(TOKENS)[0]
        with with_adapter(model, second):
            with_second = model(TOKENS)[0]
            assert set(lora_linears(model)) == set(second.maps)
            with with_adapter(model, first):
                assert torch.equal(model(TOKENS)[0], with_first)
            assert torch.equal(model(TOKENS)[0], with_second)
        assert torch.equal(model(TOKENS)[0], with_first)
        attach(model, second)
        assert torch.equal(model(TOKENS)[0], with_second)
        with pytest.raises(KeyError), with_adapter(model, None):
            raise KeyError  # comes off and on again whatever happens
        assert torch.equal(model(TOKENS)[0], with_second)
        detach(model)
        assert torch.equal(model(TOKENS)[0], plain)
    assert not torch.equal(plain, with_first) and not torch.equal(with_first, with_second)
    assert storage == {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


def test_an_adapter_in_training_is_attached_again_as_it_was(base):
    model = Checkpoint.open(base).model()
    adapter = random_adapter(base, LoraSpec(rank=4))
    before = {name: factor.clone() for name, factor in adapter.tensors.items()}
    attach(model, adapter, trainable=True)
    learning = adapter_parameters(model)
    with with_adapter(model, None):
        assert not lora_linears(model)
    assert all(adapter_parameters(model)[name] is factor for name, factor in learning.items())
    with torch.no_grad():
        for factor in learning.values():
            factor.add_(1)
    assert all(torch.equal(adapter.tensors[name], factor) for name, factor in before.items()), "a value stays as it is"


def test_an_adapter_of_another_model_leaves_the_model_as_it_was(base):
    model = Checkpoint.open(base).model()
    first, other = random_adapter(base, LoraSpec(rank=4)), random_adapter(base, LoraSpec(rank=4))
    name = next(iter(other.maps))
    other.maps[name] = LowRank(torch.ones(4, 5), torch.ones(6, 4), 1.0)
    attach(model, first)
    with pytest.raises(InputError, match=r"as a matrix \[6, 5\]"):
        attach(model, other)
    assert set(lora_linears(model)) == set(first.maps)


def test_a_model_with_an_adapter_can_be_moved_and_copied(base):
    model = Checkpoint.open(base).model().eval()
    attach(model, random_adapter(base, LoraSpec(rank=4)))
    with torch.no_grad():
        expected = model(TOKENS)[0]
        assert torch.equal(copy.deepcopy(model)(TOKENS)[0], expected)
        torch.testing.assert_close(copy.deepcopy(model).double()(TOKENS)[0].float(), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.double().float()(TOKENS)[0], expected)


def test_a_matrix_is_made_in_float32(base):
    """Under autocast, and where the weights are bfloat16, the factors' product is not rounded before it is added."""
    weight, a, b = torch.randn(8, 6), torch.randn(3, 6), torch.randn(8, 3)
    exact = weight.double() + 0.5 * b.double() @ a.double()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(LowRank(a, b, 0.5).merge(weight).double(), exact, rtol=1e-6, atol=1e-6)
    narrow = LowRank(a, b, 0.5).merge(weight.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, (weight.bfloat16().double() + 0.5 * b.double() @ a.double()).bfloat16())


def test_dropout_is_for_training_only(base):
    model = Checkpoint.open(base).model()
    attach(model, random_adapter(base, LoraSpec(rank=4, dropout=0.5)))
    with torch.no_grad():
        assert not torch.equal(model.train()(TOKENS)[0], model(TOKENS)[0])
        model.eval()
        dropped = model(TOKENS)[0]
        attach(model, random_adapter(base, LoraSpec(rank=4)))
        assert torch.equal(model(TOKENS)[0], dropped)


@pytest.mark.slow
def test_a_compiled_model_takes_adapters(base):
    model = Checkpoint.open(base).model().eval()
    adapter = random_adapter(base, LoraSpec(rank=4))
    for block in model.blocks:
        block.compile()
    with torch.no_grad():
        plain = model(TOKENS)[0]
        attach(model, adapter)
        adapted = model(TOKENS)[0]
        twin = Checkpoint.open(base).model().eval()
        attach(twin, adapter)
        torch.testing.assert_close(adapted, twin(TOKENS)[0], rtol=1e-4, atol=1e-4)
        detach(model)
        torch.testing.assert_close(model(TOKENS)[0], plain, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())

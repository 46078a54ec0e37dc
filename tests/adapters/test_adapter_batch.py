"""Rows of one pass with different adapters, beyond what the laws say of every learner: whole models and mistakes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from synthe_core import state as states
from synthe_core.adapters.lora import Adapter, LowRank
from synthe_core.adapters.lora_linear import LoRALinear, adapter_parameters, attach, detach, linear_maps, with_adapter
from synthe_core.layers.adapter_batch import NONE, AdapterBatch, current_adapters, select_rows, use_adapters
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec

VOCAB, TIME = 29, 24
BLOCK = [{"type": "momentum"}, {"type": "mlp", "hidden": 12}]
MODELS = {
    "depth": {"depth": {"min": 1, "mode": "skip", "target": 0.6}},
    "exit": {"depth": {"min": 1, "mode": "exit", "target": 0.6}},
    "untied": {"tie": False, "confidence": {}},
}


def model_of(**spec):
    torch.manual_seed(0)
    model = LanguageModel(ModelSpec.model_validate({"width": 12, "blocks": 3, "block": BLOCK} | spec), VOCAB).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if model.router is not None:
            model.router.thresholds.copy_(torch.linspace(-0.3, 0.3, len(model.router.thresholds)))
    return model.eval()


def adapter_of(model, seed, rank=2):
    """An adapter of every linear map, of the router and an untied head too."""
    draw = torch.Generator().manual_seed(seed)
    tied = model.head.weight is model.embedding.weight
    maps = {
        name: LowRank(*(0.4 * torch.randn(size, generator=draw).double() for size in sizes), 1.3)
        for name, each in linear_maps(model).items()
        if not (tied and name == "head")
        for sizes in [((rank, each.in_features), (each.out_features, rank))]
    }
    return Adapter(maps)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_whole_model_equal_each_alone(name):
    """A router sends the rows of one batch through a block in groups, and reads its matrices; a head is a map too."""
    model = model_of(**MODELS[name])
    adapters = [adapter_of(model, seed, rank) for seed, rank in ((1, 2), (2, 3))]
    for slot, adapter in enumerate(adapters, start=1):
        attach(model, adapter, slot=slot)
    indices = (1, 2, NONE, 2, 1, NONE, 1, 2)
    text = torch.randint(VOCAB, (len(indices), TIME), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), use_adapters(AdapterBatch(indices)):
        first, state = model(text[:, :-1])
        last, _ = model(text[:, -1:], state)
    detach(model)
    for row, index in enumerate(indices):
        with torch.no_grad(), with_adapter(model, None if index == NONE else adapters[index - 1]):
            own, state = model(text[row : row + 1, :-1])
            torch.testing.assert_close(first[row], own[0], rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(last[row], model(text[row : row + 1, -1:], state)[0][0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("recompute", [False, True])
def test_every_adapter_of_a_batch_gets_the_gradient_of_its_own_rows(recompute):
    model = model_of()
    model.recompute = recompute
    adapters = [adapter_of(model, seed) for seed in (1, 2)]
    indices = (2, 1, NONE, 2)
    text = torch.randint(VOCAB, (len(indices), TIME), generator=torch.Generator().manual_seed(3))
    for slot, adapter in enumerate(adapters, start=1):
        attach(model, adapter, slot=slot, trainable=True)
    for parameter in (p for slot in (1, 2) for p in adapter_parameters(model, slot).values()):
        parameter.requires_grad_(True)
    with use_adapters(AdapterBatch(indices)):
        loss = model.hidden(text)[0].square().sum()
    loss.backward()  # blocks that run again here have the adapters of their pass
    together = [
        {name: p.grad for name, p in adapter_parameters(model, slot).items() if p.grad is not None} for slot in (1, 2)
    ]
    detach(model)
    for slot, adapter in enumerate(adapters, start=1):
        attach(model, adapter, trainable=True)
        rows = [row for row, index in enumerate(indices) if index == slot]
        model.hidden(text[rows])[0].square().sum().backward()
        alone = {name: p.grad for name, p in adapter_parameters(model).items() if p.grad is not None}
        assert alone.keys() == together[slot - 1].keys() and alone
        for name, gradient in alone.items():
            torch.testing.assert_close(together[slot - 1][name], gradient, rtol=1e-9, atol=1e-10, msg=name)


def test_adapters_come_and_go_beside_each_other():
    model = model_of()
    names = set(model.state_dict())
    first, second = adapter_of(model, 1), adapter_of(model, 2)
    text = torch.randint(VOCAB, (2, TIME), generator=torch.Generator().manual_seed(3))

    def logits(slot):
        with torch.no_grad(), use_adapters(AdapterBatch((slot,))):
            return model(text)[0]

    plain = logits(NONE)
    attach(model, first, slot=1)
    with_first = logits(1)
    attach(model, second, slot=2)
    assert torch.equal(logits(1), with_first) and not torch.equal(logits(2), with_first)
    assert torch.equal(logits(NONE), plain) and torch.equal(logits(7), plain)
    with torch.no_grad():
        assert torch.equal(model(text)[0], plain), "a pass that names no adapters uses what is attached by default"
    assert names < set(model.state_dict())
    with_second = logits(2)
    detach(model, 1)
    assert torch.equal(logits(2), with_second) and torch.equal(logits(1), plain)
    attach(model, first, slot=2)
    assert torch.equal(logits(2), with_first)
    copied = copy.deepcopy(model)
    detach(model, 2)
    assert set(model.state_dict()) == names and not any(isinstance(each, LoRALinear) for each in model.modules())
    with torch.no_grad(), use_adapters(AdapterBatch((2,))):
        assert torch.equal(copied(text)[0], with_first)


def test_a_map_without_an_adapter_of_these_rows_does_nothing_more(monkeypatch):
    """Not even for a batch of rows whose adapters are on other maps."""
    linear = LoRALinear(nn.Linear(3, 4))
    parent = nn.ModuleDict({"map": linear.plain()})
    attach(parent, Adapter({"map": LowRank(torch.ones(1, 3), torch.ones(4, 1), 1.0)}), slot=5)
    calls = []
    monkeypatch.setattr(torch, "addmm", lambda *args, **_: calls.append(args))
    monkeypatch.setattr(torch.Tensor, "index_select", lambda *args, **_: calls.append(args))
    x = torch.randn(3, 2, 3)
    for batch in (AdapterBatch((NONE,)), AdapterBatch((NONE, 1, 2)), None):
        with use_adapters(batch):
            assert torch.equal(parent["map"](x), linear.plain()(x))
    assert not calls


def test_rows_that_cannot_be_matched_to_adapters_are_an_error():
    model = model_of()
    attach(model, adapter_of(model, 1), slot=1)
    maps = linear_maps(model)
    linear = maps["blocks.0.learners.1.out"]
    with use_adapters(AdapterBatch((1, NONE))):
        with pytest.raises(ValueError, match="rows with adapters, and a map reads 5"):
            linear(torch.randn(5, linear.in_features).double())
        with pytest.raises(ValueError, match="per_adapter"):
            _ = linear.weight
        with select_rows([0, 0, 1, 1, 0]):
            assert linear(torch.randn(5, linear.in_features).double()).shape == (5, linear.out_features)
        with select_rows(torch.tensor([1, 1])):
            assert linear.weight is linear.base_weight
    assert current_adapters() is None


def test_the_state_of_a_batch_is_what_each_row_would_have():
    model = model_of()
    adapter = adapter_of(model, 1)
    attach(model, adapter, slot=1)
    text = torch.randint(VOCAB, (2, TIME), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), use_adapters(AdapterBatch((1, NONE))):
        _, state = model(text)
    with torch.no_grad(), use_adapters(AdapterBatch((1,))):
        _, alone = model(text[:1])
    for (_, many), (_, one) in zip(states.named_leaves(state), states.named_leaves(alone), strict=True):
        torch.testing.assert_close(many[:1], one, rtol=1e-9, atol=1e-10)

"""LFM2's gated convolution: equal to transformers' module with the same weights, whole and token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synthe_core.layers.gated_conv import GatedConv
from synthe_core.layers.learner import Pass
from tests.layers.mixers import CLOSE, assert_same_layer, twins, wide

WIDTH = 10
each_peer = pytest.mark.parametrize("keys", [{}, {"taps": 5, "bias": True}, {"taps": 2}], ids=str)


def pair(keys: dict[str, Any]) -> tuple[Any, Any, Any]:
    lfm2 = pytest.importorskip("transformers.models.lfm2.modeling_lfm2")
    config = lfm2.Lfm2Config(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        conv_L_cache=keys.get("taps", 3),
        conv_bias=keys.get("bias", False),
        layer_types=["conv"],
    )
    torch.manual_seed(0)
    learner, module = twins(GatedConv(GatedConv.Config(**keys), WIDTH), lfm2.Lfm2ShortConv(config, 0))
    return learner, module, config


@each_peer
@pytest.mark.parametrize("time", [1, 2, 40])
def test_equals_transformers_in_outputs_and_every_gradient(keys: dict[str, Any], time: int) -> None:
    learner, module, _ = pair(keys)
    assert_same_layer(learner, module, WIDTH, time)


@each_peer
def test_decodes_as_transformers_does(keys: dict[str, Any]) -> None:
    cache_utils = pytest.importorskip("transformers.cache_utils")
    learner, module, config = pair(keys)
    cache, state = cache_utils.DynamicCache(config=config), None
    x = torch.randn(2, 12, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        for start, end in [(0, 7), *((t, t + 1) for t in range(7, 12))]:
            with wide():
                expected = module(x[:, start:end], past_key_values=cache)
            y, state = learner(x[:, start:end], state, Pass.over(x[:, start:end], start=torch.full((2,), start)))
            torch.testing.assert_close(y, expected, **CLOSE)


def test_it_is_linear_in_each_of_its_three_inputs() -> None:
    """Doubling x multiplies y by eight: no activation hides in it."""
    torch.manual_seed(1)
    learner = GatedConv(GatedConv.Config(), WIDTH).double()
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    once, twice = (learner(scale * x, None, Pass.over(x))[0] for scale in (1, 2))
    torch.testing.assert_close(twice, 8 * once)

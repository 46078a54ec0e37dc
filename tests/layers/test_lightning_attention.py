"""Lightning attention: equal to transformers' module with the same weights, whole and token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.lightning_attention import LightningAttention
from tests.layers.mixers import CLOSE, wide

WIDTH = 12
PEERS = [(4, None, 0, 3), (3, 6, 1, 4), (5, 2, 3, 4)]
each_peer = pytest.mark.parametrize(("heads", "size", "layer", "layers"), PEERS)


def pair(heads: int, size: int | None, layer: int, layers: int) -> tuple[LightningAttention, Any]:
    models = pytest.importorskip("transformers.models.minimax.modeling_minimax")
    config = models.MiniMaxConfig(
        hidden_size=WIDTH,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=size,
        num_hidden_layers=layers,
        layer_types=["linear_attention"] * layers,
        block_size=16,
    )
    torch.manual_seed(0)
    module = models.MiniMaxLightningAttention(config, layer).double().eval()
    torch.nn.init.normal_(module.norm.weight)
    scale = 1 - layer / (layers - 1 + 1e-5) + 1e-5
    learner = LightningAttention(
        LightningAttention.Config(heads=heads, head_size=size, decay_scale=scale), WIDTH
    ).double()
    torch.testing.assert_close(learner.log_decays(), -module.slope_rate.flatten().float(), rtol=1e-6, atol=1e-9)
    for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay"):  # again, in float64
        delattr(module, name)
    module.slope_rate = -learner.log_decays().double()[:, None, None]
    module.query_decay, module.key_decay, module.diagonal_decay = module.decay_factors(module.slope_rate)
    ours = {name: value for name, value in module.state_dict().items() if name != "norm.weight"}
    learner.load_state_dict(ours | {"norm": module.norm.weight})
    return learner, module


@each_peer
@pytest.mark.parametrize("time", [1, 2, 40])
def test_equals_transformers_in_outputs_and_every_gradient(
    heads: int, size: int | None, layer: int, layers: int, time: int
) -> None:
    learner, module = pair(heads, size, layer, layers)
    torch.manual_seed(1)
    x, slope = torch.randn(2, 2, time, WIDTH, dtype=torch.float64).unbind()
    results = []
    for own in (learner, module):
        given = x.clone().requires_grad_()
        with wide():
            y = learner(given, None, Pass.over(x))[0] if own is learner else module(given, None, None)[0]
        (y * slope).sum().backward()
        gradients = {name.removesuffix("norm.weight") or "norm": p.grad for name, p in own.named_parameters()}
        results.append({"y": y.detach(), "x": given.grad} | gradients)
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@each_peer
def test_decodes_as_transformers_does(heads: int, size: int | None, layer: int, layers: int) -> None:
    models = pytest.importorskip("transformers.models.minimax.modeling_minimax")
    learner, module = pair(heads, size, layer, layers)
    cache, state = models.MiniMaxCache(), None
    x = torch.randn(2, 24, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        for start, end in [(0, 19), *((t, t + 1) for t in range(19, 24))]:
            with wide():
                expected = module(x[:, start:end], None, None, past_key_values=cache)[0]
            y, state = learner(x[:, start:end], state, Pass.over(x[:, start:end], start=torch.full((2,), start)))
            torch.testing.assert_close(y, expected, **CLOSE)


def test_without_decay_nothing_is_forgotten() -> None:
    assert LightningAttention(LightningAttention.Config(heads=4, decay_scale=0.0), 8).log_decays().tolist() == [0] * 4
    slopes = LightningAttention(LightningAttention.Config(heads=8), 8).log_decays()
    torch.testing.assert_close(slopes, -(2.0 ** -torch.arange(1.0, 9.0)))


def test_a_width_that_heads_do_not_divide_is_named() -> None:
    with pytest.raises(InputError, match="width 12 is not divisible by heads 5"):
        LightningAttention(LightningAttention.Config(heads=5), WIDTH)

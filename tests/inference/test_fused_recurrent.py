"""Recurrent learners in a pass of one token in one call: the operators' numbers, signals and states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core import state as states
from synthe_core.inference.fused_decoder import FusedDecoder, refusal
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.layers.adapter_batch import use_adapters
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.fused_decode import unavailable
from synthe_core.storage.checkpoint import Checkpoint
from tests.inference.conftest import adapter_of, started, tokens_of, written

pytestmark = pytest.mark.skipif(unavailable("cpu") is not None, reason=str(unavailable("cpu")))

MLP = {"type": "mlp", "hidden": 44}
BLOCKS: dict[str, list[dict[str, Any]]] = {
    "momentum": [{"type": "momentum"}],
    "momentum without a gate": [{"type": "momentum", "gate": False, "expand": 1.3}],
    "kalman": [{"type": "kalman"}],
    "kalman of few channels": [{"type": "kalman", "rank": 19}],
    "delta": [{"type": "delta", "heads": 3}],
    "delta, odd sizes": [{"type": "delta", "heads": 2, "value_heads": 6, "key_size": 5, "value_size": 11}],
    "delta, bare": [{"type": "delta", "heads": 4, "conv": 0, "gate": False, "decay": False, "beta_range": [0, 2]}],
    "delta that adds": [{"type": "delta", "heads": 2, "overwrite": False, "conv": 2, "conv_bias": True}],
    "delta, published": [
        {"type": "delta", "heads": 2, "query_scale": 0.3, "scale": 0.7, "gate_function": "sigmoid", "norm_eps": 1e-3}
    ],
    "gla": [{"type": "gla", "heads": 4}],
    "gla, grouped": [{"type": "gla", "heads": 6, "kv_heads": 2, "key_size": 5, "value_size": 11, "gate": False}],
    "gla with a convolution": [{"type": "gla", "heads": 4, "conv": 3, "conv_bias": True, "decay_floor": -0.02}],
    "gla of one tap": [{"type": "gla", "heads": 2, "conv": 1, "temperature": 2.0}],
    "mlstm": [{"type": "mlstm", "heads": 4}],
    "mlstm, odd sizes": [{"type": "mlstm", "heads": 3, "key_size": 5, "value_size": 11, "conv": 0, "cap": None}],
    "mlstm, exponential": [{"type": "mlstm", "heads": 2, "forget": "exponential", "input_bias": -3.0}],
    "mlstm, published": [{"type": "mlstm", "heads": 2, "output": "silu", "norm": "layer", "forget_bias": [3, 6]}],
    "mamba2": [{"type": "mamba2", "state_size": 16, "head_size": 12}],
    "mamba2, groups": [
        {"type": "mamba2", "state_size": 5, "head_size": 8, "groups": 3, "norm_groups": 2, "bias": True, "conv": 1}
    ],
    "mamba2, norm first": [
        {"type": "mamba2", "state_size": 7, "head_size": 12, "norm": "before_gate", "conv_bias": False, "heads": 6}
    ],
    "mamba2, published": [
        {"type": "mamba2", "state_size": 16, "head_size": 12, "norm": "none", "time_step_limit": [0.1, 0.8]}
        | {"multipliers": [0.5, 1.3, 0.7, 1.1, 0.9]}
    ],
    "mamba": [{"type": "mamba"}],
    "mamba, odd sizes": [{"type": "mamba", "state_size": 5, "expand": 3, "conv": 1, "dt_rank": 7, "conv_bias": False}],
    "mamba, published": [{"type": "mamba", "bias": True, "bc_dt_norm": "weighted", "conv": 2}],
    "mamba, norms": [{"type": "mamba", "state_size": 11, "bc_dt_norm": True, "norm_eps": 1e-3}],
    "kda": [{"type": "kda", "heads": 4}],
    "kda, odd sizes": [
        {"type": "kda", "heads": 2, "value_heads": 6, "key_size": 5, "value_size": 11, "rank": 3, "conv": 0}
    ],
    "kda, published": [
        {"type": "kda", "heads": 3, "decay_floor": -5.0, "beta_range": [0, 2], "gate_bias": False, "conv_bias": True}
    ],
    "rg_lru": [{"type": "rg_lru"}],
    "rg_lru, odd sizes": [{"type": "rg_lru", "heads": 3, "channels": 33, "conv": 1, "activation": "silu"}],
    "rg_lru without biases": [{"type": "rg_lru", "heads": 2, "activation": "gelu", "bias": False, "conv": 3}],
    "rwkv7": [{"type": "rwkv7", "head_size": 12}],
    "rwkv7, odd sizes": [
        {"type": "rwkv7", "head_size": 3, "decay_rank": 5, "rate_rank": 7, "gate_rank": 60, "norm_eps": 1e-3}
    ],
    "rwkv7, values": [
        {"type": "rwkv7", "head_size": 16, "values": "share"},
        MLP,
        {"type": "rwkv7", "head_size": 8, "values": "mix", "value_rank": 50},
    ],
    "chained": [
        {"type": "mamba"},
        {"type": "rwkv7", "head_size": 16},
        MLP,
        {"type": "rg_lru"},
        {"type": "kda", "heads": 3},
    ],
    "gated_conv": [{"type": "gated_conv"}],
    "gated_conv with biases": [{"type": "gated_conv", "taps": 2, "bias": True}],
    "experts": [{"type": "experts", "hidden": 20}],
    "experts, published": [
        {"type": "experts", "hidden": 12, "experts": 5, "top_k": 3, "gated": False, "activation": "relu2"}
        | {"scores": "sigmoid", "bias_rate": 0.1, "weight_scale": 1.7}
    ],
    "experts, shared": [{"type": "experts", "hidden": 20, "shared": 30, "shared_gate": True}],
    "experts, groups": [
        {"type": "experts", "hidden": 20, "experts": 12, "top_k": 3, "groups": 4, "top_groups": 2, "shared": 9}
        | {"scores": "sigmoid", "bias_rate": 0.1, "gated": False}
    ],
    "experts, one": [{"type": "experts", "hidden": 33, "experts": 3, "top_k": 1}, {"type": "momentum"}],
    "experts, not normalised": [{"type": "experts", "hidden": 20, "experts": 4, "top_k": 2, "normalize": False}],
    "synthe": [{"type": "momentum"}, {"type": "delta", "heads": 3}, {"type": "kalman"}, MLP],
    "memories": [{"type": "gla", "heads": 3}, {"type": "mlstm", "heads": 3}, MLP, {"type": "mamba2", "head_size": 12}],
    "hybrid": [{"type": "delta", "heads": 3}, MLP, {"type": "attention", "heads": 4, "window": 9}, MLP],
}


def model_of(block: list[dict[str, Any]]) -> LanguageModel:
    torch.manual_seed(3)
    model = LanguageModel(ModelSpec.model_validate({"width": 48, "blocks": 2, "block": block, "tie": False}), 50)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval().requires_grad_(False)


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_equals_the_operators(name: str) -> None:
    model = model_of(BLOCKS[name])
    assert refusal(model) is None
    decoder, ours = FusedDecoder(model), started(model, (5, 12, 1))
    theirs = ours
    for step in range(20):
        tokens = tokens_of(step, 3)
        hidden, ours, signals = decoder.hidden(tokens, ours)
        expected, theirs, run = model.hidden(tokens, theirs)
        close(hidden, expected)
        assert signals.keys() == run.signals.keys()
        for signal, value in signals.items():
            close(value, run.signals[signal])
    mine, other = (dict(states.named_leaves(each)) for each in (ours, theirs))
    assert mine.keys() == other.keys()
    for leaf, value in mine.items():
        close(value, other[leaf])


@pytest.mark.parametrize("name", BLOCKS)
def test_a_row_is_the_same_in_any_company(name: str) -> None:
    model = model_of(BLOCKS[name])
    decoder, lengths = FusedDecoder(model), (5, 12, 1, 3, 8, 20, 2)
    together = started(model, lengths)
    alone = [started(model, lengths) for _ in lengths]
    alone = [states.take(each, torch.tensor([row])) for row, each in enumerate(alone)]
    for step in range(6):
        tokens = tokens_of(step, len(lengths))
        hidden, together, signals = decoder.hidden(tokens, together)
        for row in range(len(lengths)):
            single, alone[row], own = decoder.hidden(tokens[row : row + 1], alone[row])
            assert torch.equal(single[0], hidden[row])
            assert all(torch.equal(own[each][0], signals[each][row]) for each in signals)


@pytest.mark.parametrize("name", ["synthe", "memories", "chained", "rwkv7, values", "hybrid"])
def test_the_first_token_of_a_text(name: str) -> None:
    """Nothing comes before it, which rg_lru takes into account."""
    model = model_of(BLOCKS[name])
    state, tokens = model.init_state(2), tokens_of(0, 2)
    hidden, ours, _ = FusedDecoder(model).hidden(tokens, state)
    expected, theirs, _ = model.hidden(tokens, state)
    close(hidden, expected)
    for (_, mine), (_, other) in zip(states.named_leaves(ours), states.named_leaves(theirs), strict=True):
        close(mine, other)


def test_a_state_is_a_value() -> None:
    model = model_of(BLOCKS["synthe"])
    decoder, state = FusedDecoder(model), started(model, (5, 12, 1))
    copy = states.map_leaves(torch.clone, state)
    first = decoder.hidden(tokens_of(1, 3), state)[0]
    decoder.hidden(tokens_of(2, 3), state)
    assert torch.equal(decoder.hidden(tokens_of(1, 3), state)[0], first)
    for (_, mine), (_, before) in zip(states.named_leaves(state), states.named_leaves(copy), strict=True):
        assert torch.equal(mine, before)


def test_a_row_with_nan_harms_no_other() -> None:
    model = model_of(BLOCKS["hybrid"])
    decoder, state = FusedDecoder(model), started(model, (5, 12, 1))
    expected = decoder.hidden(tokens_of(0, 3), state)[0]
    broken = states.map_leaves(torch.clone, state)
    broken.blocks[0][0].memory[1] = torch.nan
    hidden = decoder.hidden(tokens_of(0, 3), broken)[0]
    assert torch.equal(hidden[[0, 2]], expected[[0, 2]]) and hidden[1].isnan().all()


@pytest.mark.parametrize(
    ("format", "name"),
    [
        *(("float32", "synthe"), ("int8", "synthe"), ("int4", "synthe")),
        *(("float32", "memories"), ("float32", "chained"), ("int8", "chained")),
    ],
)
def test_each_row_has_its_own_adapter(tmp_path: Path, format: str, name: str) -> None:
    """Kalman's gates are of a map of their own, and so are the decays of gla."""
    path = written(tmp_path / "m", BLOCKS[name], width=48)
    loaded = LoadedModel.from_checkpoint(Checkpoint.open(path), "m", weights=format)
    adapters = [None, adapter_of(loaded.model, 3, 0.5), adapter_of(loaded.model, 9, 2.0)]
    rows = [adapters[i] for i in (0, 2, 1, 0, 1)]
    loaded.adapters = {"a": adapters[1], "b": adapters[2]}  # type: ignore[dict-item]
    tokens, following = torch.randint(257, (5, 6)), torch.randint(257, (5, 1))
    with torch.no_grad(), loaded.activate(), use_adapters(loaded.adapter_batch(rows)):
        state = loaded.forward(tokens, None).state
        assert loaded.fused_refusal is None
        together = loaded.forward(following, state)
        expected, _, run = loaded.model.hidden(following, state)
    tolerance = 1e-5 if format == "float32" else 3e-2
    assert (together.hidden - expected).norm() <= tolerance * expected.norm()
    for signal, value in together.signals.items():
        torch.testing.assert_close(value, run.signals[signal], rtol=0.05, atol=0.01)
    for row, adapter in enumerate(rows):
        own = states.take(state, torch.tensor([row]))
        with torch.no_grad(), loaded.activate(), use_adapters(loaded.adapter_batch([adapter])):
            single = loaded.forward(following[row : row + 1], own)
        assert torch.equal(single.hidden[0], together.hidden[row])
        assert all(torch.equal(value[0], together.signals[name][row]) for name, value in single.signals.items())


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4"])
def test_experts_in_each_format(tmp_path: Path, format: str) -> None:
    """An expert's matrices are a part of the rows of one, and a part of the columns of the other."""
    block = [{"type": "experts", "hidden": 32, "experts": 5, "shared": 96}, {"type": "delta", "heads": 2}]
    loaded = LoadedModel.from_checkpoint(Checkpoint.open(written(tmp_path / "m", block, width=64)), "m", weights=format)
    assert loaded.fused_refusal is None
    tokens, following = torch.randint(257, (4, 6)), torch.randint(257, (4, 1))
    with torch.no_grad(), loaded.activate():
        state = loaded.forward(tokens, None).state
        ours, expected = loaded.forward(following, state).hidden, loaded.model.hidden(following, state)[0]
        alone = loaded.forward(following[2:3], states.take(state, torch.tensor([2]))).hidden
    tolerance = 3e-2 if format.startswith("int") else 1e-5
    assert (ours - expected).norm() <= tolerance * expected.norm()
    assert torch.equal(alone[0], ours[2])


@pytest.mark.parametrize(
    ("learner", "reason"),
    [
        ({"type": "kalman", "every": 3}, "every token"),
        ({"type": "delta", "heads": 2, "householder": 2}, "several steps"),
        ({"type": "delta", "heads": 2, "clip": 1.0}, "clip"),
        ({"type": "delta", "heads": 2, "signals": True}, "signals"),
        ({"type": "delta_memory", "heads": 2}, "delta_memory"),
        ({"type": "experts", "latent": 16}, "a latent"),
    ],
)
def test_what_is_not_fused_says_why(learner: dict[str, Any], reason: str) -> None:
    assert reason in (refusal(model_of([learner])) or "")


def test_an_attention_at_some_tokens_is_not_fused() -> None:
    probe = {"type": "attention", "heads": 2, "when": {"signal": "confidence", "below": 0.3}}
    assert refusal(model_of([{"type": "kalman"}, probe])) == "an attention has a condition"


@pytest.mark.parametrize("name", ["gla with a convolution", "mamba2"])
def test_a_convolution_in_another_precision_is_not_fused(name: str) -> None:
    model = model_of(BLOCKS[name])
    model.blocks[1].learners[0].conv1d.to(torch.bfloat16)
    assert refusal(model) == "a recurrent learner's parameters are not float32"

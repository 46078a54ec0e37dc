"""Attention: what its keys mean, checked by independent means. The laws are in tests/laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.layers import build, parse
from synthe_core.layers.attention import Attention
from synthe_core.layers.learner import Pass
from synthe_core.layers.rope import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling, rotary_angles


def make(width: int = 24, **keys: Any) -> Attention:
    torch.manual_seed(0)
    learner = build(parse({"type": "attention", **keys}), width).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return learner


def by_hand(learner: Attention, x: torch.Tensor) -> torch.Tensor:
    """One row x [T, D] through explicit projections, norms, complex rotations and a masked softmax."""
    config, size = learner.config, learner.size
    heads = (learner.qkv.weight @ x.T).T + (0 if learner.qkv.bias is None else learner.qkv.bias)
    heads = heads.view(len(x), -1, size)
    gates = learner.heads if config.gate else 0
    q, k, v, gate = heads.split([learner.heads, learner.groups, learner.groups, gates], dim=1)
    if config.clip is not None:
        q, k, v = (u.sign() * torch.where(u.abs() > config.clip, config.clip, u.abs()) for u in (q, k, v))
    if config.qk_norm == "joint":
        means = (u.square().mean((1, 2), keepdim=True) for u in (q, k))
        q, k = (u / (mean + config.norm_eps).sqrt() for u, mean in zip((q, k), means, strict=True))
        q, k = q * learner.q_norm.view(-1, size), k * learner.k_norm.view(-1, size)
    elif config.qk_norm:
        q, k = (u / (u.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() for u in (q, k))
    if config.qk_norm == "weighted":
        q, k = q * learner.q_norm, k * learner.k_norm
    if config.rope is not None:
        turned = config.rope_size or size
        frequencies = torch.tensor([config.rope ** (-2 * i / turned) for i in range(turned // 2)], dtype=torch.float64)
        if config.rope_scaling is not None:
            frequencies = frequencies / torch.tensor(config.rope_scaling.factors)
        angles = torch.arange(len(x))[:, None] * frequencies
        phase = torch.polar(torch.ones_like(angles), angles)[:, None]

        def turn(u: torch.Tensor) -> torch.Tensor:
            first, second, rest = u.split([turned // 2, turned // 2, size - turned], -1)
            product = torch.complex(first, second) * phase
            return torch.cat([product.real, product.imag, rest], -1)

        q, k = turn(q), turn(k)
    past = torch.arange(len(x))[:, None] - torch.arange(len(x))
    seen = (past >= 0) & (past < learner.window)
    out = []
    for head in range(learner.heads):
        group = head // (learner.heads // learner.groups)
        scores = q[:, head] @ k[:, group].T * (config.scale or size**-0.5)
        if config.logit_cap is not None:
            scores = config.logit_cap * torch.tanh(scores / config.logit_cap)
        scores = scores.masked_fill(~seen, -math.inf)
        out.append(scores.softmax(-1) @ v[:, group])
        if config.gate:
            out[-1] = out[-1] / (1 + (-gate[:, head]).exp())
    return (learner.out.weight @ torch.cat(out, -1).T).T + (0 if learner.out.bias is None else learner.out.bias)


@pytest.mark.parametrize(
    "keys",
    [
        {"heads": 4},
        {"heads": 4, "kv_heads": 2, "window": 3, "bias": "qkv", "rope": 100.0},
        {"heads": 3, "head_size": 10, "kv_heads": 1, "qk_norm": "weighted", "norm_eps": 0.1, "bias": "all"},
        {"heads": 2, "head_size": 3, "qk_norm": "weighted", "rope": None},
        {"heads": 2, "head_size": 14, "qk_norm": False},
        {"heads": 4, "kv_heads": 2, "gate": True, "bias": "qkv"},
        {"heads": 2, "head_size": 7, "rope_size": 4, "qk_norm": "weighted", "gate": True},
        {"heads": 2, "head_size": 9, "rope_size": 2},
        {"heads": 2, "head_size": 5, "rope": None},
        {"heads": 4, "kv_heads": 2, "window": 3, "logit_cap": 0.4, "scale": 0.7, "clip": 0.8},
        {"heads": 4, "kv_heads": 2, "qk_norm": "joint", "norm_eps": 0.1, "scale": 1.3},
        {"heads": 2, "clip": 0.5, "gate": True, "qk_norm": False, "logit_cap": 5.0},
        {"heads": 2, "rope_size": 4, "rope_scaling": {"type": "longrope", "factors": [2.0, 3.0]}},
    ],
    ids=str,
)
def test_the_equation(keys: dict[str, Any]) -> None:
    learner = make(**keys)
    x = torch.randn(1, 9, 24, dtype=torch.float64)
    y, _ = learner(x, None, Pass.over(x))
    torch.testing.assert_close(y[0], by_hand(learner, x[0]), rtol=1e-10, atol=1e-10)


def test_parameters_follow_the_keys() -> None:
    def names(**keys: Any) -> set[str]:
        return {name for name, _ in make(heads=4, **keys).named_parameters()}

    plain = {"qkv.weight", "out.weight"}
    assert names() == names(qk_norm=False) == plain  # checkpoints from before these keys still load
    assert names(bias="qkv") == plain | {"qkv.bias"}
    assert names(bias="out") == plain | {"out.bias"}
    assert names(bias="all", qk_norm="weighted") == plain | {"qkv.bias", "out.bias", "q_norm", "k_norm"}
    assert make(heads=4, gate=True).qkv.weight.shape == (4 * 24, 24)
    assert make(heads=4, head_size=10).out.weight.shape == (24, 40)


def test_flops_count_the_heads_as_they_are() -> None:
    small, large = make(heads=2, head_size=4), make(heads=2, head_size=8)
    assert large.flops(99) == 2 * small.flops(99)
    assert large.flops(1) == 2 * sum(p.numel() for p in large.parameters()) + 4 * 2 * 8


@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_scaled_frequencies_equal_transformers(kind: str) -> None:
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    given = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    ours: Any = LinearScaling(factor=4)
    if kind == "llama3":
        given |= {"low_freq_factor": 1.5, "high_freq_factor": 6.0, "original_max_position_embeddings": 128}
        ours = Llama3Scaling(factor=4, low=1.5, high=6, context=128)
    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=4, head_dim=64, rope_parameters=given)
    expected, _ = rope.ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    base = 1e4 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    torch.testing.assert_close(ours.apply(base), expected.double(), rtol=1e-6, atol=0)
    assert not torch.allclose(expected.double(), base)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
        {"attention_factor": 0.7, "beta_fast": 4.0, "beta_slow": 3.9},
    ],
    ids=str,
)
def test_yarn_equals_transformers(keys: dict[str, Any]) -> None:
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    given = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128} | keys
    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=4, head_dim=64, rope_parameters=given)
    expected, amplitude = rope.ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    renamed = {"beta_fast": "fast", "beta_slow": "slow"}
    ours = YarnScaling(factor=4, context=128, **{renamed.get(key, key): value for key, value in keys.items()})
    base = 1e4 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    torch.testing.assert_close(ours.apply(base), expected.double(), rtol=1e-6, atol=0)
    assert not torch.allclose(expected.double(), base)
    cos, sin = rotary_angles(torch.tensor([[9]]), 64, 1e4, ours, torch.float64)
    torch.testing.assert_close(cos[0, 0], (9 * ours.apply(base)).cos() * amplitude)
    torch.testing.assert_close(sin[0, 0], (9 * ours.apply(base)).sin() * amplitude)
    assert ours.apply(base[:1]) == 1


@pytest.mark.parametrize("keys", [{}, {"factor": 6.0}, {"attention_factor": 1.3}], ids=str)
def test_longrope_equals_transformers(keys: dict[str, Any]) -> None:
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    short, long = (torch.rand(32) + 1).tolist(), (torch.rand(32) + 4).tolist()
    given = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long}
    given |= {"original_max_position_embeddings": 128} | keys
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "max_position_embeddings": 512}
    config = transformers.LlamaConfig(rope_parameters=given, **sizes)
    base = 1e4 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    for length, factors in ((128, short), (129, long)):
        expected, amplitude = rope.ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=length)
        ours = LongRopeScaling(factors=factors, attention_factor=amplitude)
        torch.testing.assert_close(ours.apply(base), expected.double(), rtol=1e-6, atol=0)
        cos, _ = rotary_angles(torch.tensor([[9]]), 64, 1e4, ours, torch.float64)
        torch.testing.assert_close(cos[0, 0], (9 * ours.apply(base)).cos() * amplitude)


def test_llama3_leaves_quick_pairs_alone_and_stretches_slow_ones() -> None:
    scaling = Llama3Scaling(factor=8, low=1, high=4, context=8192)
    frequencies = torch.tensor([2.0, 4.01, 1.0, 0.99, 2.5]) * 2 * math.pi / 8192
    times = scaling.apply(frequencies) / frequencies
    assert times[1] == 1 and torch.allclose(times[2:4], torch.tensor(1 / 8))
    torch.testing.assert_close(times[[0, 4]], torch.tensor([1 / 3 + 2 / 3 / 8, 1 / 2 + 1 / 16]))


def test_angles_are_exact_far_into_a_text() -> None:
    position = 1_000_003
    cos, sin = rotary_angles(torch.tensor([[position]]), 4, 100.0, None, torch.float32)
    expected = [position, position / 10]
    torch.testing.assert_close(cos[0, 0], torch.tensor([math.cos(a) for a in expected]), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin[0, 0], torch.tensor([math.sin(a) for a in expected]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"heads": 5}, "width 24 is not divisible by heads 5"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not divisible by kv_heads 3"),
        ({"heads": 8}, "even head size, not 3"),
        ({"heads": 4, "head_size": 5}, "even head size, not 5"),
        ({"heads": 4, "rope_size": 3}, "even rope_size, not 3"),
        ({"heads": 4, "rope_size": 8}, "rope_size 8 of heads of 6 channels"),
        ({"heads": 4, "rope": None, "rope_size": 2}, "rope is null"),
        ({"heads": 4, "rope_scaling": {"type": "longrope", "factors": [1.0]}}, "1 factors, and 3 pairs"),
        ({"heads": 4, "window": 0}, "window must be at least 1"),
        ({"heads": 4, "rope": None, "rope_scaling": {"type": "linear", "factor": 2}}, "rope is null"),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(**keys)

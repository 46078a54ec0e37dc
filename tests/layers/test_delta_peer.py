"""The delta learner against another implementation: transformers' Qwen3NextGatedDeltaNet with the same weights."""

from __future__ import annotations

import pytest
import torch

from synthe_core.layers import build, parse
from synthe_core.layers.learner import Pass
from synthe_core.ops.dispatch import use_kernels

qwen3_next = pytest.importorskip("transformers.models.qwen3_next")

WIDTH, HEADS, KEY, VALUE, TAPS = 48, 3, 8, 12, 4
EPS = 1e-4  # of its norm


@pytest.fixture(params=[1, 2], ids=["", "grouped"])
def pair(request):
    """Our learner, and theirs with the same parameters; with as many value heads as heads, or twice as many."""
    torch.manual_seed(0)
    config = qwen3_next.Qwen3NextConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=HEADS,
        linear_num_value_heads=HEADS * request.param,
        linear_key_head_dim=KEY,
        linear_value_head_dim=VALUE,
        linear_conv_kernel_dim=TAPS,
        rms_norm_eps=EPS,
    )
    peer = qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet(config, 0)
    sizes = {"heads": HEADS, "value_heads": HEADS * request.param, "key_size": KEY, "value_size": VALUE, "conv": TAPS}
    norms = {"query_scale": KEY**-0.5, "norm_eps": EPS, "key_norm_eps": 1e-6}
    ours = build(parse({"type": "delta", **sizes, **norms}), WIDTH)
    with torch.no_grad():
        peer.norm.weight.uniform_(0.5, 1.5)
        peer.dt_bias.uniform_(-3, 1)
        for name, parameter in ours.named_parameters():
            parameter.copy_(as_ours({n: p for n, p in peer.named_parameters()})[name])
    return ours, peer


def as_ours(theirs):
    """Their parameters (or gradients) by our names: they interleave heads, q, k, v and z of one head after another."""
    group = len(theirs["A_log"]) // HEADS
    sizes = [KEY, KEY, group * VALUE, group * VALUE]
    q, k, v, z = theirs["in_proj_qkvz.weight"].unflatten(0, (HEADS, sum(sizes))).split(sizes, 1)
    b, a = (x.flatten(0, 1) for x in theirs["in_proj_ba.weight"].unflatten(0, (HEADS, 2, group)).unbind(1))
    return {
        "project.weight": torch.cat([*(x.flatten(0, 1) for x in (q, k, v, z)), b, a]),
        "conv": theirs["conv1d.weight"][:, 0],
        "A_log": theirs["A_log"],
        "dt_bias": theirs["dt_bias"],
        "norm": theirs["norm.weight"],
        "out.weight": theirs["out_proj.weight"],
    }


@pytest.mark.parametrize("kernel", ["reference", "chunked", None])
@pytest.mark.parametrize("time", [2, 3, 70])
def test_outputs_and_gradients_equal_the_peers(pair, time, kernel):
    ours, peer = pair
    x = torch.randn(2, time, WIDTH)
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    with use_kernels(**({"delta_rule": kernel} if kernel else {})):
        y, _ = ours(mine, None, Pass.over(mine))
    other = peer(theirs)
    torch.testing.assert_close(y, other, rtol=1e-5, atol=1e-6)

    upstream = torch.randn_like(y)
    y.backward(upstream)
    other.backward(upstream)
    slopes = as_ours({name: p.grad for name, p in peer.named_parameters()}) | {"x": theirs.grad}
    actual = {name: p.grad for name, p in ours.named_parameters()} | {"x": mine.grad}
    assert actual.keys() == slopes.keys()
    for name, slope in slopes.items():
        error = (actual[name] - slope).abs().max() / slope.abs().max().clamp_min(1e-30)
        assert error < 2e-5, f"{name}: relative error {error:.1e}"


def test_going_on_from_a_state_equals_the_peer_on_the_whole(pair):
    ours, peer = pair
    x = torch.randn(2, 40, WIDTH)
    with torch.no_grad():
        first, second = x.split([23, 17], 1)
        y, state = ours(first, None, Pass.over(first))
        rest, _ = ours(second, state, Pass.over(second))
        torch.testing.assert_close(torch.cat([y, rest], 1), peer(x), rtol=1e-5, atol=1e-6)

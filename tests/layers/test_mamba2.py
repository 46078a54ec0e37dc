"""Mamba-2: equal to transformers' mixer with the same weights, and to its equations written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.mamba import MambaState
from synthe_core.layers.mamba2 import Mamba2
from synthe_core.ops.dispatch import use_kernels
from tests.conftest import needs_compiler
from tests.layers.mixers import assert_same_decoding, assert_same_layer, twins

WIDTH = 12
PEERS = [
    {"state_size": 5, "head_size": 8},
    {"state_size": 4, "head_size": 6, "groups": 2, "conv": 3, "conv_bias": False, "bias": True, "norm_eps": 1e-2},
    {"state_size": 7, "head_size": 4, "groups": 3, "time_step_limit": [0.02, 0.3]},
]


SIZES = {"state_size": 5, "head_size": 3, "heads": 6, "groups": 3}  # 18 channels, which 12 of width do not give
HYBRIDS = [
    SIZES | {"norm": "before_gate", "bias": "in", "multipliers": [0.75, 1.25, 0.5, 2.0, 1.125]},
    SIZES | {"norm": "none", "bias": "out", "conv_bias": False, "time_step_limit": [1.2, 1.4]},
    SIZES | {"norm": "after_gate", "bias": True, "norm_eps": 1e-2},
]


def make(**config):
    torch.manual_seed(0)
    return Mamba2(Mamba2.Config(**config), WIDTH)


def peer(**config):
    """transformers' mixer of this configuration, and its own one."""
    mamba2 = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    names = {
        "head_size": "head_dim",
        "groups": "n_groups",
        "conv": "conv_kernel",
        "conv_bias": "use_conv_bias",
        "bias": "use_bias",
        "norm_eps": "layer_norm_epsilon",
    }
    own = {"n_groups": 1} | {names.get(key, key): value for key, value in config.items()}
    heads = 2 * WIDTH // own["head_dim"]
    config = mamba2.Mamba2Config(hidden_size=WIDTH, num_hidden_layers=1, num_heads=heads, chunk_size=32, **own)
    return mamba2.Mamba2Mixer(config, layer_idx=0), config


def falcon_peer(**config):
    """transformers' mixer of Falcon-H1 of this configuration, and its own one."""
    falcon = pytest.importorskip("transformers.models.falcon_h1.modeling_falcon_h1")
    own = falcon.FalconH1Config(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        mamba_d_ssm=config["heads"] * config["head_size"],
        mamba_n_heads=config["heads"],
        mamba_d_head=config["head_size"],
        mamba_d_state=config["state_size"],
        mamba_n_groups=config["groups"],
        mamba_rms_norm=config["norm"] != "none",
        mamba_norm_before_gate=config["norm"] == "before_gate",
        mamba_proj_bias=config["bias"] in (True, "in"),
        projectors_bias=config["bias"] in (True, "out"),
        mamba_conv_bias=config.get("conv_bias", True),
        time_step_limit=config.get("time_step_limit", (0.0, float("inf"))),
        ssm_multipliers=config.get("multipliers"),
        rms_norm_eps=config.get("norm_eps", 1e-5),
    )
    mixer = falcon.FalconH1Mixer(own, layer_idx=0)
    mixer.mup_vector = falcon.compute_mup_vector(own).double()
    return mixer, own


@pytest.mark.parametrize("config", HYBRIDS, ids=str)
@pytest.mark.parametrize("time", [1, 2, 131])
def test_norms_biases_sizes_and_multipliers_are_those_of_falcon_h1(time, config):
    assert_same_layer(*twins(make(**config), falcon_peer(**config)[0]), WIDTH, time)


@pytest.mark.parametrize("config", [HYBRIDS[0], HYBRIDS[2]], ids=str)
def test_decodes_as_falcon_h1_does(config):
    cache_utils = pytest.importorskip("transformers.cache_utils")
    mixer, its_config = falcon_peer(**config)
    learner, mixer = twins(make(**config), mixer)
    assert_same_decoding(learner, mixer, cache_utils.DynamicCache(config=its_config), WIDTH)


def test_a_norm_may_have_other_groups_than_the_heads():
    learner, x = make(**SIZES, norm_groups=2), torch.randn(2, 5, WIDTH)
    assert learner.norm.weight.shape == (18,)
    y, z = torch.randn(2, 2, 5, 18).unbind()
    gated = (y * F.silu(z)).unflatten(-1, (2, 9))
    expected = (gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(2)
    torch.testing.assert_close(learner._gated(y, z), expected)
    assert learner(x, None, Pass.over(x))[0].shape == x.shape


@pytest.mark.parametrize("kernel", ["reference", "chunked", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("config", PEERS, ids=str)
@pytest.mark.parametrize("time", [1, 2, 131])
def test_equals_transformers_in_outputs_and_every_gradient(time, config, kernel):
    learner, mixer = twins(make(**config), peer(**config)[0])
    with use_kernels(linear_attention=kernel):
        assert_same_layer(learner, mixer, WIDTH, time)


@pytest.mark.parametrize("config", PEERS[:2], ids=str)
def test_decodes_as_transformers_does(config):
    cache_utils = pytest.importorskip("transformers.cache_utils")
    mixer, its_config = peer(**config)
    learner, mixer = twins(make(**config), mixer)
    assert_same_decoding(learner, mixer, cache_utils.DynamicCache(config=its_config), WIDTH)


def test_is_the_equation_of_its_docstring_from_any_state():
    learner = make(state_size=3, head_size=4, groups=2).double()
    torch.manual_seed(4)
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    state = MambaState(*(torch.randn_like(leaf) for leaf in learner.init_state(2)))
    y, after = learner(x, state, Pass.over(x))
    z, u, dt = learner.in_proj(x).split([24, 36, 6], -1)
    inputs, S = torch.cat([state.conv, u], 1), state.scan.clone()
    for t in range(7):
        v = F.silu(learner.conv1d.bias + sum(learner.conv1d.weight[:, 0, j] * inputs[:, t + j] for j in range(4)))
        v, B, C = v.split([24, 6, 6], -1)
        delta = F.softplus(dt[:, t] + learner.dt_bias)
        read = []
        for head in range(6):
            group = slice(0, 3) if head < 3 else slice(3, 6)
            own, d = v[:, 4 * head : 4 * head + 4], delta[:, head, None]
            decay = torch.exp(-learner.A_log[head].exp() * d)
            S[:, head] = decay[..., None] * S[:, head] + (d * B[:, group])[:, :, None] * own[:, None]
            read.append((C[:, None, group] @ S[:, head])[:, 0] + learner.D[head] * own)
        gated = (torch.cat(read, -1) * F.silu(z[:, t])).unflatten(-1, (2, 12))
        normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        expected = learner.out_proj(normed.flatten(1) * learner.norm.weight)
        torch.testing.assert_close(y[:, t], expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(after.scan, S, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.conv, u[:, -3:], rtol=0, atol=0)


def test_initial_values_are_the_papers():
    learner = Mamba2(Mamba2.Config(), 1024)
    assert learner.heads == 32
    rate, step = learner.A_log.exp(), F.softplus(learner.dt_bias)
    assert 1 <= rate.min() < 4 and 12 < rate.max() <= 16
    assert 0.99e-3 < step.min() < 4e-3 and 25e-3 < step.max() < 0.101
    assert torch.equal(learner.D, torch.ones(32)) and torch.equal(learner.norm.weight, torch.ones(2048))


def test_what_it_adds_begins_at_half_the_scale_of_its_input():
    torch.manual_seed(0)
    x = torch.randn(2, 200, 192)
    y, _ = Mamba2(Mamba2.Config(), 192)(x, None, Pass.over(x))
    assert 0.4 < y.std() < 0.6


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_eight_thousand_tokens_stay_finite_in_bfloat16(scale):
    learner = make(head_size=8)
    x = (scale * torch.randn(1, 8192, WIDTH)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = learner(x, None, Pass.over(x))
    y.float().square().mean().backward()
    values = [y, x.grad, *state, *(parameter.grad for parameter in learner.parameters())]
    assert all(torch.isfinite(value).all() for value in values)
    assert all(leaf.dtype == torch.float32 for leaf in state)


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"head_size": 7}, "do not split into heads of 7", "head_size: 6"),
        ({"head_size": 8, "groups": 2}, "3 heads do not split into 2 groups", "groups: "),
        ({"head_size": 5, "heads": 3, "norm_groups": 2}, "15 channels do not split into 2 groups", "norm_groups: "),
        ({"head_size": 8, "time_step_limit": [0.1, 0.1]}, "must rise", "such as"),
    ],
    ids=["head_size", "groups", "norm_groups", "limit"],
)
def test_impossible_sizes_say_why(config, message, hint):
    with pytest.raises(InputError, match=message) as raised:
        make(**config)
    assert hint in raised.value.hint

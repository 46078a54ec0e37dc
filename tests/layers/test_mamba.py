"""Mamba: equal to transformers' mixer with the same weights, and to its equations written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.layers.learner import Pass
from synthe_core.layers.mamba import Mamba, MambaState
from synthe_core.layers.trace import Trace
from synthe_core.ops.dispatch import use_kernels
from tests.conftest import needs_compiler
from tests.layers.mixers import assert_same_decoding, assert_same_layer, twins

WIDTH = 12
PEERS = [{}, {"state_size": 5, "conv": 3, "dt_rank": 2, "conv_bias": False, "bias": True}]


def make(**config):
    torch.manual_seed(0)
    return Mamba(Mamba.Config(**config), WIDTH)


def normed_peer(kind):
    """transformers' mixer with norms on Δ, B and C: Falcon Mamba's, without weights, or Jamba's."""
    if kind == "jamba":
        jamba = pytest.importorskip("transformers.models.jamba.modeling_jamba")
        own = {"mamba_d_state": 5, "mamba_dt_rank": 3, "rms_norm_eps": 1e-2}
        return jamba.JambaMambaMixer(jamba.JambaConfig(hidden_size=WIDTH, **own), layer_idx=0)
    falcon = pytest.importorskip("transformers.models.falcon_mamba.modeling_falcon_mamba")
    own = {"state_size": 5, "time_step_rank": 3, "mixer_rms_eps": 1e-2, "use_bias": True}
    config = falcon.FalconMambaConfig(hidden_size=WIDTH, **own)
    mixer = falcon.FalconMambaMixer(config, layer_idx=0, initialize_mixer_weights=False)
    with torch.no_grad():
        mixer.A_log.copy_(torch.arange(1.0, 6).log().expand(24, 5))
        for parameter in (mixer.D, mixer.dt_proj.bias):
            parameter.fill_(1)
    return mixer


def peer(**config):
    """transformers' mixer of this configuration, and its own one."""
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    names = {"conv": "conv_kernel", "dt_rank": "time_step_rank", "conv_bias": "use_conv_bias", "bias": "use_bias"}
    own = {names.get(key, key): value for key, value in config.items()}
    config = mamba.MambaConfig(hidden_size=WIDTH, num_hidden_layers=1, **own)
    return mamba.MambaMixer(config, layer_idx=0), config


@pytest.mark.parametrize("kernel", ["reference", "segmented", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("config", PEERS, ids=str)
@pytest.mark.parametrize("time", [1, 2, 131])
def test_equals_transformers_in_outputs_and_every_gradient(time, config, kernel):
    learner, mixer = twins(make(**config), peer(**config)[0])
    with use_kernels(selective_scan=kernel):
        assert_same_layer(learner, mixer, WIDTH, time)


@pytest.mark.parametrize(("kind", "norm", "bias"), [("falcon_mamba", True, True), ("jamba", "weighted", False)])
@pytest.mark.parametrize("time", [1, 2, 131])
def test_norms_on_the_step_and_what_is_written_and_read_are_those_of_transformers(kind, norm, bias, time):
    learner = make(state_size=5, dt_rank=3, bc_dt_norm=norm, norm_eps=1e-2, bias=bias)
    assert_same_layer(*twins(learner, normed_peer(kind)), WIDTH, time)


@pytest.mark.parametrize("config", PEERS, ids=str)
def test_decodes_as_transformers_does(config):
    cache_utils = pytest.importorskip("transformers.cache_utils")
    mixer, its_config = peer(**config)
    learner, mixer = twins(make(**config), mixer)
    assert_same_decoding(learner, mixer, cache_utils.DynamicCache(config=its_config), WIDTH)


def test_is_the_equation_of_its_docstring_from_any_state():
    learner = make(state_size=3).double()
    torch.manual_seed(4)
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    state = MambaState(*(torch.randn_like(leaf) for leaf in learner.init_state(2)))
    y, after = learner(x, state, Pass.over(x))
    u, z = learner.in_proj(x).chunk(2, -1)
    inputs, h = torch.cat([state.conv, u], 1), state.scan
    for t in range(7):
        # Taps as torch's convolution has them: the last weighs the present.
        v = F.silu(learner.conv1d.bias + sum(learner.conv1d.weight[:, 0, j] * inputs[:, t + j] for j in range(4)))
        dt, B, C = learner.x_proj(v).split([1, 3, 3], -1)
        delta = F.softplus(learner.dt_proj(dt))
        h = torch.exp(delta[..., None] * -learner.A_log.exp()) * h + (delta * v)[..., None] * B[:, None]
        read = torch.einsum("ben,bn->be", h, C) + learner.D * v
        torch.testing.assert_close(y[:, t], learner.out_proj(read * F.silu(z[:, t])), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.scan, h, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.conv, u[:, -3:], rtol=0, atol=0)


def test_initial_values_are_the_papers():
    learner = make()
    torch.testing.assert_close(-learner.A_log.exp(), -torch.arange(1.0, 17).expand(24, 16))
    step = F.softplus(learner.dt_proj.bias)
    assert 0.99e-3 < step.min() < 4e-3 and 25e-3 < step.max() < 0.101
    assert torch.equal(learner.D, torch.ones(24))
    assert learner.rank == 1 and Mamba(Mamba.Config(), 192).rank == 12


def test_what_it_adds_begins_at_half_the_scale_of_its_input_or_less():
    torch.manual_seed(0)
    x = torch.randn(2, 200, 192)
    y, _ = Mamba(Mamba.Config(), 192)(x, None, Pass.over(x))
    assert 0.02 < y.std() < 0.6


def test_padding_takes_no_time():
    learner, x = make().double(), torch.randn(2, 6, WIDTH, dtype=torch.float64)
    trace = Trace()
    ctx = Pass.over(x, torch.tensor([4, 0]), trace=trace)
    learner(x, None, ctx)
    (delta,) = (record.value for record in trace.records if record.name == "delta")
    assert (delta[0, :4] > 0).all() and not delta[0, 4:].any() and not delta[1].any()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_eight_thousand_tokens_stay_finite_in_bfloat16(scale):
    learner = make()
    x = (scale * torch.randn(1, 8192, WIDTH)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = learner(x, None, Pass.over(x))
    y.float().square().mean().backward()
    values = [y, x.grad, *state, *(parameter.grad for parameter in learner.parameters())]
    assert all(torch.isfinite(value).all() for value in values)
    assert all(leaf.dtype == torch.float32 for leaf in state)

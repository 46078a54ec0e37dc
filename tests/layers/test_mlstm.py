"""The mlstm learner: its gates and initial values, beyond the laws; and transformers' xLSTM layer with its weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.layers import build, mlstm, parse
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace
from synthe_core.ops.mlstm import EMPTY_SCALE
from synthe_core.state import named_leaves, nbytes


def make(width=32, **config):
    torch.manual_seed(0)
    return build(parse({"type": "mlstm", "heads": 2} | config), width)


def run(learner, x, state=None, lengths=None, trace=None):
    return learner(x, state, Pass.over(x, lengths, trace=trace))


def traced(learner, x):
    trace = Trace()
    run(learner, x, trace=trace)
    return {record.name: record.value for record in trace.records}


def test_a_width_that_heads_do_not_divide_names_the_nearest_that_do():
    with pytest.raises(InputError, match="mlstm: width 512 is not divisible by heads 7") as error:
        make(512, heads=7)
    assert error.value.hint == "the nearest that works is heads: 8"
    assert make(512, heads=7, key_size=32, value_size=70).out.in_features == 490


def test_gates_begin_at_their_biases_whatever_is_read():
    for config, inputs, forgets in (
        ({}, [0.0, 0.0], [1.0, 1.0]),
        ({"input_bias": -10.0, "forget_bias": [3.0, 6.0], "cap": None}, [-10.0, -10.0], [3.0, 6.0]),
    ):
        shown = traced(make(**config), 30 * torch.randn(3, 5, 32))
        capped = torch.tensor(forgets) if config else 15 * torch.tanh(torch.tensor(forgets) / 15)
        torch.testing.assert_close(shown["log_input"], torch.tensor(inputs).expand(3, 5, 2))
        torch.testing.assert_close(shown["log_forget"], F.logsigmoid(capped).expand(3, 5, 2))


def test_the_cap_bounds_both_gates():
    learner = make(forget="exponential")
    torch.nn.init.normal_(learner.project.weight, std=100.0)
    shown = traced(learner, torch.randn(1, 50, 32))
    for name in ("log_input", "log_forget"):
        assert 14.9 < shown[name].max() <= 15 and -15 <= shown[name].min() < -14.9


def test_a_fresh_state_is_finite_and_of_constant_size():
    learner = make(key_size=5, value_size=12)
    fresh = learner.init_state(3)
    assert all(torch.isfinite(leaf).all() for _, leaf in named_leaves(fresh))
    for time in (1, 50):
        _, state = run(learner, torch.randn(3, time, 32))
        assert state.memory.shape == (3, 2, 5, 13) and state.scale.shape == (3, 2)
        assert nbytes(state) == 3 * learner.state_bytes(time) == 4 * 3 * (2 * 5 * 13 + 2 + 3 * 20)


def test_a_row_of_padding_keeps_its_fresh_state():
    learner, x = make(), torch.randn(2, 7, 32)
    y, state = run(learner, x, lengths=torch.tensor([0, 7]))
    assert torch.equal(state.scale[0], torch.full((2,), EMPTY_SCALE)) and state.memory[0].abs().max() == 0
    assert torch.isfinite(y).all()
    after = run(learner, x, state)[0][0]
    torch.testing.assert_close(after, run(learner, x[:1])[0][0])


@pytest.mark.parametrize("config", [{}, {"cap": None, "forget": "exponential", "forget_bias": 1.0}], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_8192_tokens_stay_finite_in_bfloat16(config, scale):
    """TITAN Synapse's gates, exponential and unstabilised with a forget bias of 1, give NaN after 512."""
    learner = make(**config)
    torch.nn.init.normal_(learner.project.weight, std=32**-0.5)  # gates that follow the input, too
    x = (scale * torch.randn(1, 8192, 32)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(learner, x)
    y.float().square().mean().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())
    assert all(leaf.dtype == torch.float32 and torch.isfinite(leaf).all() for _, leaf in named_leaves(state))


def test_autocast_stays_near_float32():
    learner, x = make(64), torch.randn(2, 40, 64)
    exact = run(learner, x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = run(learner, x)[0]
    assert (y - exact).norm() < 0.03 * exact.norm()


def test_flops_count_matrices_and_memory():
    learner = make(32, conv=0)
    matrices = 2 * (32 * (2 * 16 + 2 * 32 + 2 * 2) + 32 * 32)
    assert learner.flops(100) == matrices + 5 * 2 * 8 * 17


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("time", [16, 48])
def test_equals_transformers_layer_with_the_same_weights(time, norm, monkeypatch):
    """xLSTM-7B's layer: no convolution, sigmoid gates, cap 15, a layer norm (in whose place we may have another)."""
    xlstm = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
    if getattr(xlstm, "external_xlstm", True):
        pytest.skip("this transformers brings no layer of its own")
    width, heads = 64, 4
    torch.manual_seed(0)
    config = xlstm.xLSTMConfig(hidden_size=width, num_heads=heads, chunk_size=16, eps=0.0, mode="train")
    peer = xlstm.xLSTMLayer(config).double()
    if norm == "rms":
        monkeypatch.setattr(peer, "multihead_norm", PlainNorm(width // heads))
    else:
        torch.nn.init.normal_(peer.multihead_norm.weight)
        monkeypatch.setattr(peer.multihead_norm, "force_float32_reductions", False)
    entry = {"type": "mlstm", "heads": heads, "conv": 0, "key_size": width // heads // 2, "norm": norm}
    ours = build(parse(entry), width).double()
    names = ["q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact"]
    with torch.no_grad():
        ours.project.weight.copy_(torch.cat([getattr(peer, name).weight for name in names]))
        ours.input_bias.copy_(peer.igate_preact.bias)
        ours.forget_bias.copy_(peer.fgate_preact.bias)
        ours.out.weight.copy_(peer.out_proj.weight)
        if norm == "layer":
            ours.norm.copy_(peer.multihead_norm.weight.view_as(ours.norm))
    x, upstream = torch.randn(2, 2, time, width, dtype=torch.float64)
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    y, state = run(ours, mine)
    other, (c, n, m) = peer(theirs)
    torch.testing.assert_close(y, other)
    memory = torch.cat([c, n[..., None]], -1) * m[..., None].exp()
    root = math.sqrt(ours.key)  # they divide queries, we keys
    torch.testing.assert_close(root * state.memory * state.scale[..., None, None].exp(), memory)
    y.backward(upstream)
    other.backward(upstream)
    slopes = {
        "x": (mine.grad, theirs.grad),
        "project": (ours.project.weight.grad, torch.cat([getattr(peer, name).weight.grad for name in names])),
        "input_bias": (ours.input_bias.grad, peer.igate_preact.bias.grad),
        "forget_bias": (ours.forget_bias.grad, peer.fgate_preact.bias.grad),
        "out": (ours.out.weight.grad, peer.out_proj.weight.grad),
    }
    if norm == "layer":
        slopes["norm"] = (ours.norm.grad.flatten(), peer.multihead_norm.weight.grad)
    for name, (actual, expected) in slopes.items():
        torch.testing.assert_close(
            actual, expected, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


class PlainNorm(torch.nn.Module):
    """The root-mean-square norm per head that ours has in the place of their layer norm."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, h):
        return F.rms_norm(h, (self.size,), eps=mlstm.EPS)

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.layers.hyena import WINDOW_END, Hyena, HyenaState
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace

WIDTH = 12
VARIANTS = [
    {"length": 5},
    {"length": 2, "filter_width": 3, "filter_layers": 1},
    {"length": 40, "bands": 3, "shift": 0.1, "frequency": 2.0},
]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def make(width=WIDTH, **config):
    torch.manual_seed(0)
    learner = Hyena(Hyena.Config(**config), width).double()
    with torch.no_grad():
        learner.project.bias.normal_()
    return learner


def inputs(batch, time, width=WIDTH):
    torch.manual_seed(1)
    return torch.randn(batch, time, width, dtype=torch.float64)


def expected_taps(learner):
    """The filter lag by lag and channel by channel, from its definition."""
    config, width = learner.config, learner.width
    taps = torch.zeros(width, config.length, dtype=torch.float64)
    window = torch.zeros_like(taps)
    fast, slow = config.decay
    for d in range(width):
        rate = math.log(100) / slow + d / (width - 1) * (math.log(100) / fast - math.log(100) / slow)
        for j in range(config.length):
            window[d, j] = math.exp(-rate * j / (config.length - 1)) + config.shift
    for j in range(config.length):
        angles = [2 * math.pi * f * j / config.length for f in range(1, learner.bands + 1)]
        features = [j / (config.length - 1), *map(math.cos, angles), *map(math.sin, angles)]
        z = torch.tensor(features, dtype=torch.float64)
        for layer, frequency in zip(learner.filter_hidden, learner.filter_frequency, strict=True):
            z = torch.sin(frequency * layer(z))
        taps[:, j] = learner.filter_out @ z
    taps = taps * window / window.square().sum(1, keepdim=True).sqrt()
    taps[:, 0] += learner.D
    return taps


@each_variant
def test_the_filter_equals_the_docstrings_equations(variant):
    learner = make(**variant)
    torch.testing.assert_close(learner.filter(), expected_taps(learner), rtol=1e-10, atol=1e-11)


@each_variant
def test_equals_the_docstrings_equations(variant):
    learner, x = make(**variant), inputs(2, 11)
    state = HyenaState(*(torch.randn_like(leaf) for leaf in learner.init_state(2)))
    y, after = learner(x, state, Pass.over(x))
    taps, length = expected_taps(learner), learner.config.length
    projected, reads = list(state.short.unbind(1)), list(state.long.unbind(1))
    for t in range(11):
        projected.append(learner.project(x[:, t]))
        mixed = sum(learner.conv[:, j] * projected[j - 3] for j in range(3))
        v, before, gate = mixed.chunk(3, -1)
        reads.append(v * before)
        read = sum(taps[:, j] * reads[-1 - j] for j in range(length))
        torch.testing.assert_close(y[:, t], (gate * read) @ learner.out.weight.T, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(after.short, torch.stack(projected[-2:], 1), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(after.long, torch.stack(reads[1 - length :], 1), rtol=1e-10, atol=1e-11)


def test_what_is_older_than_the_filter_is_forgotten():
    learner, x = make(length=6), inputs(1, 30).requires_grad_()
    y, _ = learner(x, None, Pass.over(x))
    (gradient,) = torch.autograd.grad(y[:, 20].sum(), x)
    reach = 6 + 3 - 1  # of both convolutions
    assert gradient[:, : 21 - reach].abs().max() == 0 and gradient[:, 21 - reach].abs().max() > 0


@pytest.mark.parametrize("width", [192, 512])
def test_starts_at_half_the_scale_of_what_it_reads(width):
    torch.manual_seed(0)
    learner = Hyena(Hyena.Config(), width).double()
    with torch.no_grad():
        present = learner.filter().clone()
        present[:, 0] -= learner.D
        assert 0.35 < present.square().sum(1).mean() < 0.6
        x = inputs(1, 1500, width)
        assert 0.35 < learner(x, None, Pass.over(x))[0].std() < 0.65


def test_windows_fade_at_the_configured_lags():
    learner = make(length=1001, decay=[0.25, 0.75])
    with torch.no_grad():
        for parameter in (learner.filter_out, learner.D):
            parameter.zero_()
        learner.filter_frequency.fill_(0)  # then every sine is 0 ...
        learner.filter_hidden[-1].bias.fill_(math.pi / 2)
        learner.filter_frequency[-1] = 1.0  # ... but those of the last layer, which are near 1
        learner.filter_hidden[-1].weight.zero_()
        learner.filter_out.fill_(1.0)
        window = learner.filter()
    window = window / window[:, :1]
    assert window[-1, 250].item() == pytest.approx(WINDOW_END) and window[0, 750].item() == pytest.approx(WINDOW_END)


def test_a_trace_sees_the_filter_and_what_it_reads():
    learner, x, trace = make(length=7), inputs(2, 5), Trace()
    learner(x, None, Pass.over(x, trace=trace))
    seen = {record.name: record.value for record in trace.records}
    assert seen["filter"].shape == (WIDTH, 7) and seen["read"].shape == (2, 5, WIDTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filter_and_state_stay_wide_when_the_matrices_are_narrow(dtype):
    learner, x = make(length=20).to(dtype), inputs(2, 33).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        y, state = learner(x, None, Pass.over(x))
        assert learner.filter().dtype == torch.float32
    assert y.dtype == torch.bfloat16 and state.long.dtype == state.short.dtype == torch.float32
    if dtype == torch.float32:  # a filter of narrow parameters is another filter
        exact, _ = make(length=20)(inputs(2, 33), None, Pass.over(x))
        assert (y - exact).abs().max() < 0.03 * exact.abs().max()


def test_invalid_sizes_are_refused():
    for decay in ([1.5, 0.3], [0.0, 1.0]):
        with pytest.raises(InputError, match="decay must be two positive numbers"):
            make(decay=decay)
    for bad in ({"length": 1}, {"bands": 0}, {"shift": -1.0}, {"order": 3}):
        with pytest.raises(ValidationError):
            Hyena.Config.model_validate(bad)


def test_is_built_without_memory_and_counts_its_state():
    with torch.device("meta"):
        learner = Hyena(Hyena.Config(length=100), 192)
    assert learner.state_bytes(5000) == 4 * (2 * 3 * 192 + 99 * 192)
    network = 13 * 64 + 64 + 2 * (64 * 64 + 64) + 192 * 64  # 100 // 16 = 6 frequencies
    matrices = 2 * (192 * 3 * 192 + 192 * 192 + 3 * 192 * 3)
    assert learner.flops(50) == matrices + 2 * network * 100 / 50 + (2 * 25.5 + 2) * 192  # tokens 1 to 50 of a text


def test_the_filter_is_computed_again_only_after_a_weight_has_changed(monkeypatch):
    learner, x = make(length=20), inputs(2, 5)
    computed = []
    original = Hyena.filter
    monkeypatch.setattr(Hyena, "filter", lambda self: computed.append(self) or original(self))

    def output():
        with torch.no_grad():
            return learner(x, None, Pass.over(x))[0]

    first = output()
    assert torch.equal(output(), first) and len(computed) == 1
    for weight in (learner.D, learner.filter_hidden[0].bias, learner.filter_frequency, learner.filter_out):
        with torch.no_grad():
            weight.mul_(1.5)
        other = output()
        assert not torch.equal(other, first)
        first = other
    assert len(computed) == 5
    learner.D.data = torch.zeros_like(learner.D)
    assert not torch.equal(output(), first) and len(computed) == 6
    learner(x, None, Pass.over(x))[0].sum().backward()  # with gradients it is computed in every pass
    assert len(computed) == 7 and learner.filter_out.grad is not None
    copied = copy.deepcopy(learner)
    with torch.no_grad():
        copied.filter_out.mul_(2)
        assert not torch.equal(copied(x, None, Pass.over(x))[0], output())

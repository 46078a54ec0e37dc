"""The spectral learner: its filter has the learned frequency response at any length; its gate reads the energy."""

from __future__ import annotations

import math

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.layers import build, parse
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace


def learner(width: int = 6, **settings: object):
    torch.manual_seed(0)
    return build(parse({"type": "spectral"} | settings), width).double()


def respond(made, frequency: torch.Tensor) -> torch.Tensor:
    """The response at the points, linear between them: complex [D, F]."""
    points = torch.view_as_complex(made.response.detach())
    points = torch.cat([points[:, :1].real + 0j, points[:, 1:-1], points[:, -1:].real + 0j], 1)
    place = frequency * 2 * (made.config.points - 1)
    low = place.floor().long().clamp_max(made.config.points - 2)
    return torch.lerp(points[:, low].real, points[:, low + 1].real, place - low) + 1j * torch.lerp(
        points[:, low].imag, points[:, low + 1].imag, place - low
    )


def test_the_kernel_has_the_response_of_its_points():
    made = learner(points=9)
    with torch.no_grad():
        made.response.add_(0.3 * torch.randn_like(made.response))
    time = 40_000
    lags = torch.arange(1 - time, time, dtype=torch.float64)
    frequency = torch.linspace(0, 0.5, 41, dtype=torch.float64)
    waves = torch.polar(torch.ones(1, dtype=torch.float64), -2 * math.pi * frequency[:, None] * lags)
    actual = made.kernel(time).detach().to(torch.complex128) @ waves.T
    waves_height = made.kernel(1000).abs().max().item()
    beyond = 2 * waves_height * (16 / math.pi) ** 2 / time  # at most, of what decays as (16 / πτ)²
    assert beyond < 2e-3
    torch.testing.assert_close(actual, respond(made, frequency), rtol=0, atol=beyond)


def test_a_longer_text_has_the_same_kernel_and_more_of_it():
    made = learner(points=5)
    short, long = made.kernel(10), made.kernel(50)
    torch.testing.assert_close(short, long[:, 40:-40], rtol=0, atol=0)


def test_channels_begin_as_exponentials_of_unit_energy_half_of_them_ahead():
    made = learner(8, points=257, timescales=[2, 16])
    kernel = made.kernel(200).detach()
    past, ahead = kernel[:, 200:].square().sum(1), kernel[:, :199].square().sum(1)
    torch.testing.assert_close(kernel.square().sum(1), torch.ones(8, dtype=torch.float64), rtol=0.05, atol=0)
    assert (past[0::2] > 50 * ahead[0::2]).all() and (ahead[1::2] > 50 * past[1::2]).all()
    torch.testing.assert_close(kernel[0, 200] / kernel[0, 199], torch.tensor(0.5).double(), rtol=1e-3, atol=0)


def test_the_output_is_the_filter_gated_by_the_energy():
    made, x = learner(points=5), torch.randn(2, 11, 6, dtype=torch.float64)
    with torch.no_grad():
        made.energy_weight.copy_(torch.randn(6))
        made.bias.copy_(torch.randn(6))
    trace = Trace()
    y, state = made(x, None, Pass.over(x, trace=trace))
    kernel = made.kernel(11)
    filtered = torch.zeros_like(x)
    for t in range(11):
        for s in range(11):
            filtered[:, t] += kernel[:, 10 + t - s] * x[:, s]
    energy = filtered.square().mean(1)
    gate = torch.sigmoid(made.energy_weight * torch.log(energy + 1e-6) + made.bias)
    torch.testing.assert_close(y, (filtered * gate[:, None]) @ made.out.weight.T)
    assert state == ()
    shown = {record.name: record.value for record in trace.records}
    torch.testing.assert_close(shown["energy"], energy.detach())
    torch.testing.assert_close(shown["gate"], gate.detach())


def test_silence_and_a_row_of_padding_are_finite():
    made, x = learner(), torch.zeros(2, 5, 6, dtype=torch.float64, requires_grad=True)
    y, _ = made(x, None, Pass.over(x, torch.tensor([5, 0])))
    y.sum().backward()
    assert (y == 0).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


def test_the_cost_of_a_token_grows_with_the_logarithm_of_the_text():
    made = learner(64)
    assert made.flops(8192) - made.flops(4096) < 1.2 * (made.flops(4096) - made.flops(2048))
    assert made.flops(8192) < 1.5 * made.flops(512)


def test_groups_mix_channels_and_begin_as_filters_of_their_own():
    made, alone = learner(points=5, group=3), learner(points=5)
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    torch.testing.assert_close(made._filtered(x), alone._filtered(x))
    with torch.no_grad():
        made.response.add_(0.3 * torch.randn_like(made.response))
    kernel, expected = made.kernel(11), torch.zeros_like(x)
    for i in range(6):
        for j in range(3):
            for t in range(11):
                for s in range(11):
                    expected[:, t, i] += kernel[i, j, 10 + t - s] * x[:, s, i // 3 * 3 + j]
    torch.testing.assert_close(made._filtered(x), expected)
    with pytest.raises(InputError, match="not divisible by group 4"):
        learner(points=5, group=4)


def test_gates_of_tokens():
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    made = learner(points=5, gate="token")
    filtered = made._filtered(x)
    lengths = filtered.square().sum(-1, keepdim=True).add(1e-6).sqrt()
    y, _ = made(x, None, Pass.over(x))
    torch.testing.assert_close(y, (filtered * torch.sigmoid(lengths)) @ made.out.weight.T)
    assert {name for name, _ in made.named_parameters()} == {"response", "out.weight"}
    made = learner(points=5, gate="input")
    trace = Trace()
    y, _ = made(x, None, Pass.over(x, trace=trace))
    gate = torch.sigmoid(x @ made.gate.weight.T + made.gate.bias)
    torch.testing.assert_close(y, (made._filtered(x) * gate) @ made.out.weight.T)
    (record,) = trace.records
    assert record.name == "token_gate" and torch.equal(record.value, gate)

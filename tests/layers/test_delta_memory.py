"""delta_memory is `delta` with other defaults, and nothing else."""

from __future__ import annotations

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.layers import build, parse
from synthe_core.layers.delta import Delta
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace

SETTINGS = {"beta_range": [0.01, 0.3], "clip": 10.0, "scale": 0.1}


def make(width=32, **config):
    torch.manual_seed(0)
    return build(parse({"type": "delta_memory", "heads": 2} | config), width)


def run(learner, x, trace=None):
    return learner(x, None, Pass.over(x, trace=trace))


def test_it_is_delta_with_its_settings_bit_for_bit():
    learner, twin = make(), make(type="delta", **SETTINGS)
    x = torch.randn(2, 30, 32)
    assert isinstance(learner, Delta) and type(twin) is Delta
    assert learner.state_dict().keys() == twin.state_dict().keys()
    assert torch.equal(run(learner, x)[0], run(twin, x)[0])
    assert torch.equal(run(learner, x)[1].memory, run(twin, x)[1].memory)


def test_scale_multiplies_the_output_and_nothing_else():
    x = torch.randn(2, 30, 32)
    (y, state), (whole, other) = run(make(), x), run(make(scale=1.0), x)
    torch.testing.assert_close(y, 0.1 * whole)
    assert torch.equal(state.memory, other.memory)


def test_strengths_lie_between_a_hundredth_and_three_tenths():
    trace = Trace()
    run(make(), 10 * torch.randn(1, 200, 32), trace)
    (beta,) = (record.value for record in trace.records if record.name == "beta")
    assert 0.01 <= beta.min() < 0.02 and 0.29 < beta.max() <= 0.3


def test_written_values_are_at_most_10_long():
    x = 1e4 * torch.randn(1, 1, 32)
    memory = run(make(), x)[1].memory
    assert memory.flatten(2).norm(dim=-1).max() <= 3.0001  # 0.3 times 10
    assert run(make(clip=None), x)[1].memory.flatten(2).norm(dim=-1).max() > 100


def test_errors_say_its_own_name():
    with pytest.raises(InputError, match="delta_memory: width 512 is not divisible by heads 7"):
        make(512, heads=7)
    with pytest.raises(InputError, match="delta_memory: beta_range"):
        make(beta_range=[0.3, 0.1])

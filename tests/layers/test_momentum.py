import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.momentum import Momentum, MomentumState
from synthe_core.layers.trace import Trace

WIDTH = 12
VARIANTS = [{}, {"expand": 1.5, "gate": False}, {"expand": 0.25}]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def make(**config):
    torch.manual_seed(0)
    return Momentum(Momentum.Config(**config), WIDTH).double()


def inputs(batch, time):
    torch.manual_seed(1)
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


@each_variant
def test_equals_the_docstrings_equations(variant):
    learner, x = make(**variant), inputs(2, 9)
    h = torch.randn(2, learner.channels, dtype=torch.float64)
    y, state = learner(x, MomentumState(h), Pass.over(x))
    decay, value, *gate = learner.project.weight.split(learner.channels)
    for t in range(9):
        a = torch.sigmoid(x[:, t] @ decay.T + learner.decay_bias)
        h = a * h + (1 - a) * (x[:, t] @ value.T)
        gated = h * F.silu(x[:, t] @ gate[0].T) if gate else h
        torch.testing.assert_close(y[:, t], gated @ learner.out.weight.T, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(state.average, h, rtol=1e-11, atol=1e-12)


@each_variant
@pytest.mark.parametrize("cuts", [(1,), (2, 3, 64), (63,)], ids=str)
def test_any_split_and_any_padding_give_the_same(variant, cuts):
    learner, x = make(**variant), inputs(3, 65)
    whole, final = learner(x, None, Pass.over(x))
    state, pieces = None, []
    for start, end in zip((0, *cuts), (*cuts, 65), strict=True):
        part = torch.cat([x[:, start:end], torch.full((3, 4, WIDTH), 1e4, dtype=torch.float64)], dim=1)
        y, state = learner(part, state, Pass.over(part, lengths=torch.full((3,), end - start)))
        pieces.append(y[:, : end - start])
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(state.average, final.average, rtol=1e-10, atol=1e-11)


def test_padding_leaves_the_state_to_the_last_bit():
    learner, x = make().float(), inputs(2, 40).float()
    state = learner(x, None, Pass.over(x))[1]
    after = learner(x, state, Pass.over(x, lengths=torch.tensor([0, 1])))[1]
    assert torch.equal(after.average[0], state.average[0])
    assert not torch.equal(after.average[1], state.average[1])


def test_averages_reach_back_over_the_timescales_named():
    learner = make(timescales=(3.0, 100.0))
    reach = 1 / (1 - torch.sigmoid(learner.decay_bias))
    torch.testing.assert_close(reach[[0, -1]], torch.tensor([3.0, 100.0], dtype=torch.float64), rtol=1e-5, atol=0)
    steps = reach.log().diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=0)


def test_a_trace_sees_gates_and_averages():
    learner, x, trace = make(), inputs(2, 5), Trace()
    learner(x, None, Pass.over(x, lengths=torch.tensor([5, 2]), trace=trace))
    seen = {record.name: record.value for record in trace.records}
    assert seen.keys() == {"gate", "average"}
    assert (seen["gate"][1, 2:] == 1).all() and (seen["gate"][0] < 1).all()
    assert torch.equal(seen["average"][1, 4], seen["average"][1, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_and_state_stay_wide_when_the_matrices_are_narrow(dtype):
    learner, x = make().to(dtype), inputs(2, 33).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        y, state = learner(x, None, Pass.over(x))
    assert y.dtype == torch.bfloat16 and state.average.dtype == torch.float32
    exact, _ = make()(inputs(2, 33), None, Pass.over(x))
    assert (y - exact).abs().max() < 0.03 * exact.abs().max()


def test_invalid_sizes_are_refused():
    with pytest.raises(InputError, match=r"expand 0\.01 of width 12 leaves no channel"):
        make(expand=0.01)
    for bad in ({"expand": 0}, {"timescales": [1.0, 5.0]}, {"timescales": [2.0]}, {"decay": 0.9}):
        with pytest.raises(ValidationError):
            Momentum.Config.model_validate(bad)


def test_flops_are_those_of_the_matrices_and_of_the_scan():
    learner = make(expand=2.0)
    assert learner.flops(8) == 2 * (WIDTH * 3 * 24 + 24 * WIDTH) + 7 * 24

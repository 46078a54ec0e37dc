import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.tiers import EPS, Tiers, TiersState
from synthe_core.layers.trace import Trace
from synthe_core.ops.dispatch import record_ops

WIDTH = 12
VARIANTS = [{}, {"tiers": 1}, {"tiers": 3, "size": 5, "ratio": 3}, {"tiers": 2, "ratio": 50}]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def make(**config):
    torch.manual_seed(0)
    learner = Tiers(Tiers.Config(**config), WIDTH).double()
    with torch.no_grad():
        learner.norm.add_(0.3 * torch.randn_like(learner.norm))
    return learner


def inputs(batch, time):
    torch.manual_seed(1)
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


def past(learner, batch):
    return TiersState(torch.randn(batch, learner.config.tiers, learner.size, dtype=torch.float64))


def one_token(learner, x, levels, position):
    """Output [D] and tiers [N, E] of one row after the token x [D] at `position`, from the equations."""
    levels, config = list(levels), learner.config

    def norm(k):
        return levels[k] / (levels[k].square().mean() + EPS).sqrt() * learner.norm[k]

    for k in range(config.tiers):
        if position % config.ratio**k == 0:
            z = norm(k - 1) if k else x
            a, v = (learner.feed[k].weight @ z).split(learner.size)
            a = torch.sigmoid(a + learner.decay_bias[k])
            levels[k] = a * levels[k] + (1 - a) * v
    conditioned = [norm(config.tiers - 1)]
    for k in reversed(range(config.tiers - 1)):
        scale, shift = (learner.condition[k].weight @ conditioned[0]).split(learner.size)
        conditioned.insert(0, norm(k) * (1 + scale) + shift)
    y = learner.out.weight @ (torch.cat(conditioned) * F.silu(learner.gate.weight @ x))
    return y, torch.stack(levels)


@each_variant
def test_equals_the_docstrings_equations(variant):
    learner, x = make(**variant), inputs(3, 13)
    state, first, lengths = past(learner, 3), torch.tensor([0, 5, 8]), torch.tensor([13, 13, 7])
    y, after = learner(x, state, Pass.over(x, lengths, first))
    for row in range(3):
        levels = state.levels[row]
        for t in range(int(lengths[row])):
            expected, levels = one_token(learner, x[row, t], levels, int(first[row]) + t)
            torch.testing.assert_close(y[row, t], expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(after.levels[row], levels, rtol=1e-10, atol=1e-11)


@each_variant
@pytest.mark.parametrize("cuts", [(1,), (2, 3, 64), tuple(range(1, 65))], ids=lambda cuts: f"{len(cuts)} cuts")
def test_any_split_of_rows_at_different_positions_gives_the_same(variant, cuts):
    learner, x = make(**variant), inputs(3, 65)
    first = torch.tensor([0, 1, 6])
    whole, final = learner(x, None, Pass.over(x, start=first))
    state, pieces = None, []
    for start, end in zip((0, *cuts), (*cuts, 65), strict=True):
        part = x[:, start:end]
        y, state = learner(part, state, Pass.over(part, start=first + start))
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(state.levels, final.levels, rtol=1e-10, atol=1e-11)


def test_a_tier_costs_its_ticks_only():
    learner, x = make(tiers=4), inputs(2, 64)
    with record_ops() as recorder:
        learner(x, None, Pass.over(x))
    ticks = [call.time for op, call, _ in recorder.calls if op.name == "gated_average"]
    assert ticks == [64, 32, 16, 8]
    entries = [call.time for op, call, _ in recorder.calls if op.name == "rms_norm"]
    assert entries == [65, 33, 17, 9]


def test_a_token_between_ticks_moves_the_fast_tier_only():
    learner, x = make(tiers=3), inputs(1, 1)
    state = past(learner, 1)
    for position, moved in ((3, [True, False, False]), (6, [True, True, False]), (8, [True, True, True])):
        after = learner(x, state, Pass.over(x, start=torch.tensor([position])))[1]
        assert [not torch.equal(a, b) for a, b in zip(after.levels[0], state.levels[0], strict=True)] == moved


def test_the_slow_tier_conditions_the_fast_ones_output():
    learner, x = make(tiers=3), inputs(1, 1)
    state = past(learner, 1)
    other = TiersState(state.levels.clone())
    other.levels[:, 2] += 1.0
    with torch.no_grad():  # read nothing but the fast tier
        learner.out.weight[:, learner.size :] = 0
    ctx = Pass.over(x, start=torch.tensor([1]))  # between the ticks of all others
    assert (learner(x, state, ctx)[0] - learner(x, other, ctx)[0]).abs().max() > 1e-3


def test_padding_leaves_the_tiers_to_the_last_bit():
    learner, x = make().float(), inputs(2, 40).float()
    state = learner(x, None, Pass.over(x))[1]
    after = learner(x, state, Pass.over(x, lengths=torch.tensor([0, 1])))[1]
    assert torch.equal(after.levels[0], state.levels[0])
    assert not torch.equal(after.levels[1], state.levels[1])


def test_averages_reach_back_over_the_timescales_named():
    learner = make(timescales=(3.0, 100.0))
    reach = 1 / (1 - torch.sigmoid(learner.decay_bias))
    ends = torch.tensor([3.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(reach[:, [0, -1]], ends.expand(4, 2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("width", [192, 512])
def test_starts_at_half_the_scale_of_what_it_reads(width):
    torch.manual_seed(0)
    learner, x = Tiers(Tiers.Config(), width), torch.randn(1, 1024, width)
    with torch.no_grad():
        assert 0.2 < learner(x, None, Pass.over(x))[0].std() < 0.6


def test_a_trace_has_every_tiers_state_at_every_token():
    learner, x, trace = make(tiers=2), inputs(2, 5), Trace()
    state = past(learner, 2)
    learner(x, state, Pass.over(x, start=torch.tensor([1, 1]), trace=trace))
    seen = {record.name: record.value for record in trace.records}
    assert seen.keys() == {"tier_0", "tier_1"} and seen["tier_1"].shape == (2, 5, learner.size)
    assert torch.equal(seen["tier_1"][:, 0], state.levels[:, 1])  # position 1 is no tick of it
    assert torch.equal(seen["tier_1"][:, 1], seen["tier_1"][:, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_and_state_stay_wide_when_the_matrices_are_narrow(dtype):
    learner, x = make().to(dtype), inputs(2, 33).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        y, state = learner(x, None, Pass.over(x))
    assert y.dtype == torch.bfloat16 and state.levels.dtype == torch.float32
    exact, _ = make()(inputs(2, 33), None, Pass.over(x))
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_invalid_sizes_are_refused():
    with pytest.raises(InputError, match="40 tiers at ratio 2 would tick every 549755813888 tokens"):
        make(tiers=40)
    for bad in ({"tiers": 0}, {"ratio": 1}, {"size": 0}, {"timescales": [1.0, 5.0]}):
        with pytest.raises(ValidationError):
            Tiers.Config.model_validate(bad)


def test_flops_and_state_are_counted():
    with torch.device("meta"):
        learner = Tiers(Tiers.Config(tiers=2, size=10), WIDTH)
    reading = 2 * 2 * WIDTH * 20
    climbing = 2 * WIDTH * 20 + 2 * 10 * 20 / 2
    conditioning = 2 * 10 * 20 * (1 / 2 + 1 / 8)
    assert learner.flops(8) == reading + climbing + conditioning + 15 * 10 * 1.5
    assert learner.state_bytes(100) == 4 * 2 * 10

import pytest
import torch
from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.test_time import TTT
from synthe_core.layers.trace import Trace
from synthe_core.ops.dispatch import record_ops
from synthe_core.ops.frames import POSITION_RANGE, Spans, last_position
from synthe_core.ops.span_memory import largest_error, projected
from synthe_core.ops.span_memory.reference import relative_error

WIDTH = 12


def make(**config):
    torch.manual_seed(0)
    learner = TTT(TTT.Config(**{"heads": 3, "span": 4} | config), WIDTH).double()
    with torch.no_grad():
        learner.memory.bias.add_(0.3 * torch.randn_like(learner.memory.bias))
    return learner


def inputs(batch, time, seed=1):
    torch.manual_seed(seed)
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


def test_a_span_is_finished_by_the_first_token_of_a_later_one_even_over_gaps():
    position = torch.tensor([[2, 3, 4, 9, 10, 20], [0, 1, 2, 3, 4, 5]])
    spans = Spans.of(4, position, None, torch.tensor([-1.0, 0.0]))
    assert spans.finished.int().tolist() == [[0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0]]
    assert spans.num_finished.tolist() == [[0, 0, 1, 2, 2, 3], [0, 0, 0, 0, 1, 1]]
    assert spans.token[0].tolist() == [2, 3, 5] and spans.token[1, 0] == 4
    assert spans.span[0].tolist() == [0, 1, 2] and spans.span[1, 0] == 0
    assert spans.lengths.tolist() == [3, 1] and spans.mask.int().tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_last_position_is_remembered_over_passes_and_the_wrap():
    far = 2**31
    for seen, position, finished in (
        (far + 3, far + 4, True),
        (far + 2, far + 3, False),
        (POSITION_RANGE - 1, POSITION_RANGE, True),
    ):
        stored = last_position(torch.tensor([[seen]]), None, torch.tensor([-1.0]))
        assert stored.dtype == torch.float32 and stored < POSITION_RANGE
        spans = Spans.of(4, torch.tensor([[position]]), None, stored)
        assert bool(spans.finished) == finished
        assert spans.span.tolist() == ([[seen // 4]] if finished else [[]])
    padded = Pass.over(torch.zeros(2, 3), torch.tensor([0, 2]), torch.tensor([7, 7]))
    assert last_position(padded.positions, padded.lengths, torch.tensor([5.0, 5.0])).tolist() == [5, 8]


@pytest.mark.parametrize("config", [{}, {"test_time": False}], ids=str)
def test_a_memory_is_read_as_the_last_finished_span_left_it(config):
    learner, x = make(**config), inputs(1, 16)
    y = learner(x, None, Pass.over(x))[0]
    assert y[:, :4].abs().max() == 0  # nothing is known yet
    changed = x.clone()
    changed[:, 5] += 1.0
    other = learner(changed, None, Pass.over(x))[0]
    same = (y == other).all(-1)[0].tolist()
    assert same == [True] * 5 + [False] + [True] * 2 + [False] * 8  # itself, and whoever comes after the span


def test_what_is_repeated_is_expected():
    learner = make(span=8, timescales=[200.0, 200.0])
    x = inputs(1, 8).repeat(1, 6, 1)
    ctx = Pass.over(x)
    learner(x, None, ctx)
    surprise = ctx.signals["surprise"].detach().view(6, 8).mean(1)
    assert surprise[0] == pytest.approx(1.0, abs=1e-3)  # a memory that knows nothing; eps shortens values a little
    assert (surprise[1:] < surprise[:-1]).all() and surprise[-1] < 0.5
    torch.testing.assert_close(ctx.signals["confidence"], 1 / (1 + ctx.signals["surprise"]))


@pytest.mark.parametrize("cuts", [(1,), (2, 3, 20), tuple(range(1, 21))], ids=lambda cuts: f"{len(cuts)} cuts")
def test_any_split_of_rows_at_different_positions_with_gaps_gives_the_same(cuts):
    learner, x = make(), inputs(3, 21)
    position = torch.tensor([0, 1, 6])[:, None] + torch.arange(21)
    position[1] += 9 * (torch.arange(21) > 12)
    position[2] *= 2
    whole, final = learner(x, None, Pass(positions=position))
    state, pieces = None, []
    for start, end in zip((0, *cuts), (*cuts, 21), strict=True):
        y, state = learner(x[:, start:end], state, Pass(positions=position[:, start:end]))
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-11)
    for one, other in zip((*state.memory, state.last_position), (*final.memory, final.last_position), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_padding_longer_than_a_span_leaves_no_trace():
    learner, x = make(), inputs(2, 40)
    lengths = torch.tensor([40, 1])
    y, after = learner(x, None, Pass.over(x, lengths))
    alone, state = learner(x[1:, :1], None, Pass.over(x[1:, :1]))
    torch.testing.assert_close(y[1:, :1], alone, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(after.memory.pending[1:], state.memory.pending, rtol=1e-10, atol=1e-11)


def test_switches_do_what_they_say():
    assert make().memory.init_state(1, torch.float32, "cpu").velocity.numel() > 0
    assert make(momentum=False).memory.init_state(1, torch.float32, "cpu").velocity.numel() == 0
    assert make(test_time=False).memory.init_state(1, torch.float32, "cpu").velocity.numel() == 0
    x = inputs(1, 9)
    recorded = {}
    for name, config in {
        "all": {},
        "plain": {"surprise": False, "momentum": False},
        "delta": {"test_time": False},
    }.items():
        with record_ops() as recorder:
            make(**config)(x, None, Pass.over(x))
        recorded[name] = next(call.arguments for op, call, _ in recorder.calls if op.name == "span_memory")
    assert recorded["all"]["sharpness"] is not None and recorded["all"]["momentum"].max() < 0.9
    assert recorded["plain"]["sharpness"] is None and recorded["plain"]["momentum"] is None
    assert [recorded[name]["online"] for name in recorded] == [False, False, True]


def test_invalid_sizes_are_refused():
    with pytest.raises(InputError, match="size 10 is not divisible by heads 3"):
        make(size=10)
    for bad in ({"span": 0}, {"heads": 0}, {"timescales": [1.0, 5.0]}):
        with pytest.raises(ValidationError):
            make(**bad)


@pytest.mark.parametrize("width", [192, 512])
def test_stays_below_half_the_scale_of_what_it_reads(width):
    torch.manual_seed(0)
    learner, x = TTT(TTT.Config(), width), torch.randn(1, 512, width)
    with torch.no_grad():
        assert 0.01 < learner(x, None, Pass.over(x))[0].std() < 0.6


@pytest.mark.parametrize("surprise", [True, False])
def test_a_trace_has_the_bound_of_every_rate(surprise):
    learner, x, trace = make(surprise=surprise, span=4), 3 * inputs(2, 33), Trace()
    state = learner.init_state(2)
    wild = 100 * torch.randn_like(state.memory.memory)
    memory = state.memory._replace(memory=projected(wild))
    learner(x, state._replace(memory=memory), Pass.over(x, trace=trace))
    seen = {record.name: record.value for record in trace.records}
    assert (seen["rate"] <= seen["rate_bound"] + 1e-12).all()
    assert torch.allclose(seen["rate"], seen["rate_bound"], rtol=1e-9) != surprise  # without it both are one
    key = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    value = torch.tensor([0.0, -2.0], dtype=torch.float64)
    worst = torch.zeros(3, 2, dtype=torch.float64)
    worst[0, 1] = 3**0.5  # recalls the opposite of the value, at the edge of the ball
    assert relative_error(key[None], value[None], worst) == pytest.approx(float(largest_error(key, value)))

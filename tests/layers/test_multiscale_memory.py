from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.layers import LAYERS, build, parse
from synthe_core.layers.learner import Pass
from synthe_core.layers.multiscale_memory import MultiscaleMemory
from synthe_core.layers.slow_tiers import EPS
from synthe_core.layers.trace import Trace
from synthe_core.ops.dispatch import record_ops

WIDTH = 12
SUMMARIES = [
    {"every": 1, "rule": "momentum"},
    {"every": 4, "size": 6, "rule": {"type": "delta", "heads": 2, "conv": 0}},
    {"every": 8, "size": 5, "rule": "kalman"},
    {"every": 24, "size": 4, "rule": "momentum"},
]
GRADIENTS = [
    {"every": 1, "rule": "momentum"},
    {"every": 4, "size": 6, "rule": {"type": "test_time", "heads": 2}},
    {"every": 12, "size": 4, "rule": {"type": "test_time", "heads": 1}},
]
MIXED = [
    {"every": 1, "size": 10, "rule": "kalman"},
    {"every": 3, "size": 6, "rule": {"type": "test_time", "heads": 2}},
    {"every": 6, "size": 5, "rule": "kalman"},
    {"every": 12, "size": 4, "rule": {"type": "test_time", "heads": 2}},
]
VARIANTS = {"summaries": SUMMARIES, "gradients": GRADIENTS, "mixed": MIXED}
each_variant = pytest.mark.parametrize("tiers", VARIANTS.values(), ids=VARIANTS)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def make(tiers, width=WIDTH, **config):
    torch.manual_seed(0)
    learner = build(parse({"type": "multiscale_memory", "tiers": tiers} | config), width).double()
    assert isinstance(learner, MultiscaleMemory)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return learner


def inputs(batch, time, seed=1):
    torch.manual_seed(seed)
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


def at(position, trace=None):
    return Pass(positions=torch.as_tensor(position), trace=trace)


def traced(learner, x, position):
    trace = Trace()
    y, _ = learner(x, None, at(position, trace))
    return y, {record.name: record.value for record in trace.records if record.name.startswith("tier_")}


def norm(x, weight=1.0):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


class ByHand:
    """One row, token by token: lists of what spans hold, the tiers' own learners called with one token each."""

    def __init__(self, learner, consolidate=True):
        self.learner, self.consolidate = learner, consolidate
        count = len(learner.slow)
        self.items = [[] for _ in range(count)]  # (item, its persistence) of the span that has begun
        self.states, self.reading = [None] * count, [torch.zeros(t.size, dtype=torch.float64) for t in learner.slow]
        self.surprise, self.persistence = [1.0] * count, [0.0] * count
        self.fast, self.last = None, None

    def finish(self, place, which, position):
        tier = self.learner.slow[place]
        h = torch.stack([item for item, _ in self.items[place]])
        p = torch.tensor([[score] for _, score in self.items[place]], dtype=torch.float64)
        g = torch.sigmoid(h @ tier.gate.weight.T)
        self.items[place] = []
        z = norm(tier.compress.weight @ ((g * p * h).sum(0) / (g * p).sum()))
        if tier.predict is not None:
            error = (tier.predict.weight @ self.reading[place] - z).square().mean() / (z.square().mean() + EPS)
            self.surprise[place] = float(error.detach())
            if tier.persistence is not None:
                keep = torch.sigmoid(tier.persistence.logit).item()
                self.persistence[place] = keep * self.persistence[place] + (1 - keep) / (1 + self.surprise[place])
        m = z * (g * p).sum() / g.sum()
        said, self.states[place] = tier.rule(m[None, None], self.states[place], at([[which]]))
        self.reading[place] = m + said[0, 0]
        if place + 1 < len(self.items):
            score = self.persistence[place] if self.consolidate else 1.0
            self.items[place + 1].append((self.reading[place], score))

    def token(self, x, position):
        learner = self.learner
        if self.last is not None:
            for place, every in enumerate(learner.periods[1:]):
                if position // every > self.last // every:
                    self.finish(place, self.last // every, position)
        self.last = position
        fast, self.fast = learner.fast(x[None, None], self.fast, at([[position]]))
        fast = fast[0, 0]
        self.items[0].append((x + fast, 1.0))
        above = None
        for place in reversed(range(len(learner.slow))):
            own = norm(self.reading[place], learner.slow[place].norm)
            if above is not None:
                scale, shift = (learner.condition[place + 1].weight @ above).chunk(2)
                own = own * (1 + scale) + shift
            above = own
        scale, shift = (learner.condition[0].weight @ above).chunk(2)
        cosine = torch.cosine_similarity(fast, shift, dim=0) if shift.abs().max() > 0 else 0.0
        return fast * (1 + scale) + shift, self.surprise[0], (1 - cosine) / 2


@pytest.mark.parametrize("consolidate", [True, False])
@torch.no_grad()
def test_equals_the_docstrings_equations_over_gaps_too(consolidate):
    learner, x = make(SUMMARIES, consolidate=consolidate), inputs(2, 41)
    position = torch.tensor([5, 0])[:, None] + torch.arange(41)
    position[1] += 9 * (torch.arange(41) > 10) + 30 * (torch.arange(41) > 13)
    ctx = at(position)
    y, _ = learner(x, None, ctx)
    for row in range(2):
        hand = ByHand(learner, consolidate)
        for t in range(41):
            expected, surprise, conflict = hand.token(x[row, t], int(position[row, t]))
            torch.testing.assert_close(y[row, t], expected, **CLOSE)
            assert ctx.signals["surprise"][row, t].item() == pytest.approx(surprise, rel=1e-8)
            assert ctx.signals["confidence"][row, t].item() == pytest.approx(1 / (1 + surprise), rel=1e-8)
            assert ctx.signals["conflict"][row, t].item() == pytest.approx(float(conflict), abs=2e-4)


@each_variant
def test_a_token_sees_finished_spans_only(tiers):
    """A change inside a span reaches no slow reading of that span's tokens, and those of the next."""
    learner, x = make(tiers), inputs(1, 60)
    position = torch.arange(60)[None]
    _, before = traced(learner, x, position)
    for t in (24, 26, 33):
        changed = x.clone()
        changed[:, t] += 1.0
        _, after = traced(learner, changed, position)
        for place, every in enumerate(learner.periods[1:], start=2):
            end = (t // every + 1) * every
            one, other = before[f"tier_{place}"][0], after[f"tier_{place}"][0]
            same = (one == other).all(-1)
            assert same[:t].all() and same[t + 1 : end].all()
            if tiers[place - 1]["rule"] in ("momentum", "kalman") or "delta" in str(tiers[place - 1]["rule"]):
                assert same[t]  # held; a memory with queries of its own answers the changed token differently
            assert not same[end]


@each_variant
def test_a_slow_word_changes_where_a_span_ends_and_nowhere_else(tiers):
    learner, x = make(tiers), inputs(1, 60)
    _, seen = traced(learner, x[:, :1].expand(-1, 60, -1), torch.arange(60)[None] + 3)  # queries do not change
    for place, every in enumerate(learner.periods[1:], start=2):
        value = seen[f"tier_{place}"][0]
        moved = [t + 3 for t in range(1, 60) if not torch.equal(value[t], value[t - 1])]
        assert moved and all(t % every == 0 for t in moved)


@each_variant
@pytest.mark.parametrize("cuts", [(1,), (2, 3, 64), tuple(range(1, 65))], ids=lambda cuts: f"{len(cuts)} cuts")
@pytest.mark.parametrize("reset", [None, 24])
def test_any_split_of_rows_at_different_positions_gives_the_same(tiers, cuts, reset):
    learner, x = make(tiers, reset_every=reset), inputs(3, 65)
    position = torch.tensor([0, 1, 6])[:, None] + torch.arange(65)
    position[1] += 5 * (torch.arange(65) > 31)  # a gap
    ctx = at(position)
    whole, final = learner(x, None, ctx)
    state, pieces, signals = None, [], []
    for start, end in zip((0, *cuts), (*cuts, 65), strict=True):
        piece = at(position[:, start:end])
        y, state = learner(x[:, start:end], state, piece)
        pieces.append(y)
        signals.append(piece.signals)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)
    for (name, one), (_, other) in zip(states.named_leaves(state), states.named_leaves(final), strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, name=name: f"{name}: {m}", **CLOSE)
    assert {"surprise", "confidence", "conflict"} <= set(ctx.signals)
    for name, signal in ctx.signals.items():
        torch.testing.assert_close(torch.cat([s[name] for s in signals], 1), signal, **CLOSE)


@each_variant
@pytest.mark.parametrize("ended", [3, 4, 5, 11, 12, 13, 24, 25])
def test_padding_that_begins_at_the_end_of_a_span_is_inert(tiers, ended):
    learner, x, more = make(tiers), inputs(2, 30), inputs(2, 9, seed=7)
    lengths = torch.tensor([ended, 30])
    loud = torch.where((torch.arange(30) < lengths[:, None])[..., None], x, 1e3)
    y, state = learner(loud, None, Pass.over(x, lengths))
    after, _ = learner(more, state, Pass.over(more, start=lengths))
    for row, length in enumerate(lengths.tolist()):
        whole = torch.cat([x[row : row + 1, :length], more[row : row + 1]], 1)
        expected, _ = learner(whole, None, Pass.over(whole))
        torch.testing.assert_close(torch.cat([y[row, :length], after[row]]), expected[0], **CLOSE)


@each_variant
def test_a_reset_is_a_fresh_start(tiers):
    learner, x = make(tiers, reset_every=24), inputs(2, 60)
    first = torch.tensor([0, 10])
    y, _ = learner(x, None, Pass.over(x, start=first))
    for row, cuts in enumerate(([0, 24, 48, 60], [0, 14, 38, 60])):
        for start, end in pairwise(cuts):
            part = x[row : row + 1, start:end]
            alone, _ = learner(part, None, Pass.over(part, start=first[row : row + 1] + start))
            torch.testing.assert_close(y[row : row + 1, start:end], alone, **CLOSE)
    assert (make(tiers)(x, None, Pass.over(x, start=first))[0] - y)[0, 24:].abs().max() > 1e-3


def test_the_loss_of_prediction_is_the_mean_over_real_spans_():
    learner, x = make(SUMMARIES), inputs(2, 24)
    lengths = torch.tensor([24, 9])
    ctx = Pass.over(x, lengths)
    learner(x, None, ctx)
    surprise = ctx.signals["surprise"].detach()
    spans = torch.cat([surprise[0, [4, 8, 12, 16, 20]], surprise[1, [4, 8]]])
    of_tier_2 = next(loss.detach() for name, loss in ctx.losses if name == "multiscale_prediction")
    assert float(of_tier_2) == pytest.approx(0.01 * float(spans.mean()), rel=1e-3)  # EPS of a square
    learner.eval()
    quiet = Pass.over(x, lengths)
    learner(x, None, quiet)
    assert not quiet.losses


def test_the_switches_reach_every_memory_that_learns_at_test_time():
    x = inputs(1, 25)
    for config, check in (
        ({"surprise": False}, lambda a: a["sharpness"] is None and a["momentum"] is not None),
        ({"momentum": False}, lambda a: a["momentum"] is None and a["sharpness"] is not None),
        ({"test_time": False}, lambda a: a["online"] and a["momentum"] is None),
        ({}, lambda a: not a["online"] and a["momentum"] is not None and a["sharpness"] is not None),
    ):
        with record_ops() as recorder:
            make(GRADIENTS, **config)(x, None, Pass.over(x))
        calls = [call.arguments for op, call, _ in recorder.calls if op.name == "span_memory"]
        assert len(calls) == 2 and all(map(check, calls))


def test_what_has_not_persisted_is_not_promoted():
    """Tier 3 learns from a token as fast as tier 2's persistence says: at first, hardly."""
    x = inputs(1, 8).repeat(1, 12, 1)
    weights = {}
    for consolidate in (True, False):
        with record_ops() as recorder:
            make(GRADIENTS, consolidate=consolidate)(x, None, Pass.over(x))
        weights[consolidate] = [call.arguments["weight"] for op, call, _ in recorder.calls if op.name == "span_memory"]
    assert (weights[True][0] == 1).all() and (weights[False][1] == 1).all()
    promoted = weights[True][1][0]
    assert promoted[0] < 0.05 and promoted[-1] > 5 * promoted[0] and promoted.max() <= 1


def test_between_ticks_no_slow_rule_runs():
    learner, x = make(SUMMARIES[:3]), inputs(1, 1)
    _, state = learner(inputs(1, 3), None, Pass.over(inputs(1, 3)))
    for position, expected in ((3, []), (4, ["delta_rule"])):
        with record_ops() as recorder:
            _, state = learner(x, state, at([[position]]))
        assert [op.name for op, *_ in recorder.calls if op.name in ("delta_rule", "kalman_filter")] == expected


def test_conflict_is_one_where_slow_contradicts_fast():
    learner, x = make(SUMMARIES[:2]), inputs(1, 12)
    trace = Trace()
    ctx = Pass.over(x, trace=trace)
    y, _ = learner(x, None, ctx)
    conflict = ctx.signals["conflict"]
    fast = next(record.value for record in trace.records if record.name == "tier_1")
    assert ((conflict >= 0) & (conflict <= 1)).all() and (conflict[:, :4] == 0.5).all()  # nothing is held yet
    with torch.no_grad():
        learner.condition[0].weight[: learner.width] = 0  # no scale: y - f is the shift
    ctx = Pass.over(x)
    y, _ = learner(x, None, ctx)
    expected = (1 - torch.cosine_similarity(fast, y - fast, dim=-1)) / 2
    torch.testing.assert_close(ctx.signals["conflict"][:, 4:], expected[:, 4:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("width", [192, 512])
@pytest.mark.parametrize(
    "rules", [("momentum", {"type": "delta", "heads": 4}, "kalman"), ("momentum", "test_time", "test_time")], ids=str
)
def test_the_slow_tiers_cost_less_than_a_third_of_the_fast_one(width, rules):
    tiers = [{"every": every, "rule": rule} for every, rule in zip((1, 16, 128), rules, strict=True)]
    with torch.device("meta"):
        learner = build(parse({"type": "multiscale_memory", "tiers": tiers}), width)
        fast = LAYERS["momentum"](parse("momentum"), width)
    assert 1 < learner.flops(2048) / fast.flops(2048) < 1.32
    assert (
        MultiscaleMemory.Config().tiers == parse({"type": "multiscale_memory", "tiers": tiers}).tiers
        or rules[1] == "test_time"
    )


@pytest.mark.parametrize("width", [192, 512])
def test_starts_at_half_the_scale_of_what_it_reads_or_less(width):
    torch.manual_seed(0)
    learner, x = MultiscaleMemory(MultiscaleMemory.Config(), width), torch.randn(1, 1024, width)
    with torch.no_grad():
        assert 0.15 < learner(x, None, Pass.over(x))[0].std() < 0.6


@torch.no_grad()
def test_small_readings_stay_small():
    learner, x = make(GRADIENTS[:2]), inputs(1, 3)
    empty = learner.init_state(1)
    memory = torch.randn_like(empty.slow[0].memory.memory)

    def amplitude(scale):
        taught = empty.slow[0]._replace(memory=empty.slow[0].memory._replace(memory=scale * memory))
        spoken, silent = (learner(x, empty._replace(slow=slow), Pass.over(x))[0] for slow in ((taught,), empty.slow))
        return float((spoken - silent).norm())

    assert amplitude(0.1) == pytest.approx(10 * amplitude(0.01), rel=0.1)
    assert amplitude(1e3) < 2 * amplitude(10)  # and a large reading saturates


def test_invalid_settings_are_refused():
    def tiers(*periods, rule="kalman"):
        return [{"every": every, "rule": rule} for every in periods]

    for bad, reason in (
        ({"tiers": tiers(2, 4)}, "the first tier runs on every token"),
        ({"tiers": tiers(1, 4, 6)}, "a span must contain whole spans"),
        ({"tiers": tiers(1, 4, 4)}, "a span must contain whole spans"),
        ({"tiers": tiers(1, 4), "reset_every": 6}, "not a multiple"),
        ({"tiers": []}, "at least 1"),
        ({"prediction": 0.0}, "greater than 0"),
    ):
        with pytest.raises(ValidationError, match=reason):
            MultiscaleMemory.Config.model_validate(bad)
    for bad, reason in (
        ({"tiers": [*tiers(1), {"every": 4, "rule": {"type": "test_time", "span": 8}}]}, "tier 2 sets span"),
        ({"tiers": [*tiers(1), {"every": 4, "size": 6, "rule": "test_time"}]}, "not divisible by heads 4"),
        ({"tiers": [*tiers(1), *tiers(4, rule="spectral")]}, "spectral sees the whole text"),
        ({"tiers": [*tiers(1), *tiers(4, rule={"type": "attention", "heads": 1})], "reset_every": 8}, "state grows"),
    ):
        with pytest.raises(InputError, match=reason):
            build(parse({"type": "multiscale_memory"} | bad), 32)


def test_what_is_written_out_in_full_is_built_again():
    """A saved recipe names every key, those of a rule too that only its tier may set."""
    spec = parse({"type": "multiscale_memory", "tiers": GRADIENTS[:2]})
    again = build(parse(spec.model_dump(mode="json")), 32)
    assert again.config == spec


def test_one_tier_alone_is_its_learner():
    learner, x = make([{"every": 1, "rule": "momentum"}]), inputs(1, 9)
    y, _ = learner(x, None, Pass.over(x))
    assert torch.equal(y, learner.fast(x, None, Pass.over(x))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_variant
def test_state_stays_wide_when_the_matrices_are_narrow(tiers, dtype):
    learner, x = make(tiers).to(dtype), inputs(2, 33).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        y, state = learner(x, None, Pass.over(x))
    assert y.dtype == torch.bfloat16
    assert {leaf.dtype for _, leaf in states.named_leaves(state)} == {torch.float32}
    exact, _ = make(tiers)(inputs(2, 33), None, Pass.over(x))
    assert (y - exact).abs().max() < 0.15 * exact.abs().max()

import itertools

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.layers.kalman import MIN_HEAD_NOISE, MIN_NOISE, Kalman, KalmanState
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace

WIDTH = 12
VARIANTS = [{}, {"rank": 5}, {"every": 3}, {"every": 3, "rank": 20}, {"every": 50}]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def make(**config):
    torch.manual_seed(0)
    return Kalman(Kalman.Config(**config), WIDTH).double()


def inputs(batch, time):
    torch.manual_seed(1)
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


def past(learner, batch):
    return KalmanState(*(1 + torch.rand(batch, learner.rank, dtype=torch.float64) for _ in range(2)))


@each_variant
def test_equals_the_docstrings_equations(variant):
    learner, x = make(**variant), inputs(2, 11)
    mean, variance = state = past(learner, 2)
    first = torch.tensor([4, 9])  # rows whose clocks tick at different columns
    ctx = Pass.over(x, start=first)
    y, after = learner(x, state, ctx)
    a, q = torch.sigmoid(learner.transition_logit), F.softplus(learner.process_logit) + MIN_NOISE
    for t in range(11):
        z, noise = learner.observe(x[:, t]).chunk(2, -1)
        r = F.softplus(noise + learner.noise_bias)
        tick = ((first + t) % learner.config.every == 0)[:, None]
        prior = a**2 * variance + q
        gain = torch.where(tick, prior / (prior + r), 0)
        innovation = z - a * mean
        surprise = torch.where(tick, innovation**2 / (prior + r), 0).mean(-1)
        mean = torch.where(tick, a * mean + gain * innovation, mean)
        variance = torch.where(tick, (1 - gain) * prior, variance)
        expected = learner.out(mean * F.silu(learner.gate(x[:, t])))
        torch.testing.assert_close(y[:, t], expected, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(ctx.signals["surprise"][:, t], surprise, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(ctx.signals["confidence"][:, t], 1 - gain.mean(-1), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(after.mean, mean, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(after.variance, variance, rtol=1e-10, atol=1e-11)


@each_variant
@pytest.mark.parametrize("cuts", [(1,), (2, 3, 64), tuple(range(1, 65))], ids=lambda cuts: f"{len(cuts)} cuts")
def test_any_split_of_rows_at_different_positions_gives_the_same(variant, cuts):
    learner, x = make(**variant), inputs(3, 65)
    first = torch.tensor([0, 1, 5])
    ctx = Pass.over(x, start=first)
    state, pieces, signals = past(learner, 3), [], []
    whole, final = learner(x, state, ctx)
    for start, end in zip((0, *cuts), (*cuts, 65), strict=True):
        piece = Pass.over(x[:, start:end], start=first + start)
        y, state = learner(x[:, start:end], state, piece)
        pieces.append(y)
        signals.append(piece.signals)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-11)
    for name in ("surprise", "confidence"):
        torch.testing.assert_close(torch.cat([s[name] for s in signals], 1), ctx.signals[name], rtol=1e-10, atol=1e-11)
    for one, other in zip(state, final, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@each_variant
def test_padding_is_inert_in_rows_of_any_length(variant):
    learner, x = make(**variant), inputs(4, 31)
    lengths, first = torch.tensor([31, 10, 1, 0]), torch.tensor([0, 2, 0, 4])
    state = past(learner, 4)
    x[torch.arange(31) >= lengths[:, None]] = 1e4
    ctx = Pass.over(x, lengths, first)
    y, final = learner(x, state, ctx)
    for row, length in enumerate(lengths.tolist()):
        alone = KalmanState(*(leaf[row : row + 1] for leaf in state))
        if length:
            part = x[row : row + 1, :length]
            expected, alone = learner(part, alone, Pass.over(part, start=first[row : row + 1]))
            torch.testing.assert_close(y[row, :length], expected[0], rtol=1e-10, atol=1e-11)
        for one, other in zip(final, alone, strict=True):
            torch.testing.assert_close(one[row], other[0], rtol=1e-10, atol=1e-11)
        assert (ctx.signals["surprise"][row, length:] == 0).all()
        assert (ctx.signals["confidence"][row, length:] == 1).all()


@each_variant
def test_nothing_reads_the_future_and_signals_carry_gradient(variant):
    learner, x = make(**variant), inputs(2, 23).requires_grad_()
    ctx = Pass.over(x)
    y, _ = learner(x, None, ctx)
    for value in (y, ctx.signals["surprise"], ctx.signals["confidence"]):
        (slope,) = torch.autograd.grad(value[:, :13].sum(), x, retain_graph=True)
        assert slope[:, 13:].abs().max() == 0
        assert slope[:, :13].abs().max() > 0


def test_between_ticks_no_observation_is_computed():
    learner, x = make(every=4), inputs(2, 20)
    seen = []
    learner.observe.register_forward_hook(lambda module, given, result: seen.append(given[0].shape[1]))
    learner(x, None, Pass.over(x))
    learner(x[:, :2], None, Pass.over(x[:, :2], start=torch.tensor([1, 5])))
    assert seen == [5]
    every, all_of_them = make(every=4), make()
    assert all_of_them.flops(1) - every.flops(1) == 0.75 * (2 * WIDTH * 2 * WIDTH + 14 * WIDTH)
    assert all_of_them.flops(1) == 2 * WIDTH * WIDTH * 4 + 14 * WIDTH


def test_stationary_gains_start_at_the_timescales_of_the_recipe():
    learner = make(timescales=(3.0, 100.0))
    with torch.no_grad():
        learner.observe.weight.zero_()  # z = 0 and r = 1
        x, trace = inputs(1, 2000), Trace(only=frozenset({"gain"}))
        learner(x, None, Pass.over(x, trace=trace))
    gain = trace.records[0].value[0]
    torch.testing.assert_close(
        1 / gain[-1, [0, -1]], torch.tensor([3.0, 100.0], dtype=torch.float64), rtol=1e-3, atol=0
    )
    assert (gain[0] > gain[-1] - 1e-9).all()  # the first tokens count for more


def test_a_shock_surprises_when_it_comes_and_evidence_brings_confidence():
    learner = make()
    with torch.no_grad():
        learner.observe.weight[WIDTH:] = 0  # constant observation noise
    x = inputs(1, 1).expand(1, 60, WIDTH).clone()
    x[:, 40] *= -8
    ctx = Pass.over(x)
    learner(x, None, ctx)
    surprise, confidence = (ctx.signals[name][0] for name in ("surprise", "confidence"))
    assert surprise.argmax() == 40 and surprise[40] > 10 * surprise[39]
    assert (confidence.diff() > -1e-12).all() and confidence[0] < 0.6 < confidence[-1] < 1


def test_a_trace_sees_what_the_filter_thought():
    learner, x, trace = make(), inputs(2, 6), Trace()
    state = past(learner, 2)
    learner(x, state, Pass.over(x, lengths=torch.tensor([6, 2]), trace=trace))
    seen = {record.name: record.value for record in trace.records}
    assert seen.keys() == {"gain", "innovation", "variance"}
    assert (seen["gain"][1, 2:] == 0).all() and (seen["gain"][0] > 0).all() and (seen["gain"] < 1).all()
    z = learner.observe(x[:, 0]).chunk(2, -1)[0]
    predicted = torch.sigmoid(learner.transition_logit) * state.mean
    torch.testing.assert_close(seen["innovation"][:, 0], z - predicted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filter_and_state_stay_wide_when_the_matrices_are_narrow(dtype, every):
    learner, x = make(every=every).to(dtype), inputs(2, 33).to(dtype)
    ctx = Pass.over(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        y, state = learner(x, None, ctx)
    assert y.dtype == torch.bfloat16
    assert {leaf.dtype for leaf in (*state, *ctx.signals.values())} == {torch.float32}
    exact, _ = make(every=every)(inputs(2, 33), None, Pass.over(x))
    assert (y - exact).abs().max() < 0.04 * exact.abs().max()


def test_invalid_settings_are_refused():
    for bad in ({"every": 0}, {"rank": 0}, {"timescales": [0.5, 5.0]}, {"ranks": 3}):
        with pytest.raises(ValidationError):
            Kalman.Config.model_validate(bad)


@pytest.mark.parametrize("variant", [{}, {"every": 3}, {"rank": 20, "every": 2}], ids=str)
def test_a_covariance_equals_the_docstrings_equations(variant):
    learner, x = make(covariance={"heads": 2, "rank": 3}, **variant), inputs(2, 11)
    size, heads = learner.rank // 2, 2
    torch.manual_seed(2)
    root = torch.randn(2, heads, 3, 3, dtype=torch.float64)
    state = KalmanState(torch.randn(2, heads, 3, dtype=torch.float64), root @ root.mT)
    first = torch.tensor([4, 9])
    ctx = Pass.over(x, start=first)
    y, after = learner(x, state, ctx)
    a, q = torch.sigmoid(learner.transition_logit), F.softplus(learner.process_logit) + MIN_NOISE
    expected = torch.zeros(2, 11, learner.rank, dtype=torch.float64)
    surprises, confidences = torch.zeros(2, 11).double(), torch.ones(2, 11).double()
    for row, head in itertools.product(range(2), range(heads)):
        mean, covariance, loading = state.mean[row, head], state.variance[row, head], learner.loading[head]
        own = slice(head * size, (head + 1) * size)
        for t in range(11):
            if (first[row] + t) % learner.config.every == 0:
                z, noise = (part[own] for part in learner.observe(x[row, t]).chunk(2))
                r = F.softplus(noise + learner.noise_bias[own]) + MIN_HEAD_NOISE
                prior = torch.outer(a[head], a[head]) * covariance + torch.diag(q[head])
                total = loading @ prior @ loading.T + torch.diag(r)
                gain = prior @ loading.T @ torch.linalg.inv(total)
                innovation = z - loading @ (a[head] * mean)
                surprises[row, t] += innovation @ torch.linalg.solve(total, innovation) / learner.rank
                confidences[row, t] -= torch.trace(gain @ loading) / learner.rank
                mean = a[head] * mean + gain @ innovation
                covariance = (torch.eye(3).double() - gain @ loading) @ prior
            expected[row, t, own] = loading @ mean
        torch.testing.assert_close(after.mean[row, head], mean, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(after.variance[row, head], covariance, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(y, learner.out(expected * F.silu(learner.gate(x))), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ctx.signals["surprise"], surprises, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ctx.signals["confidence"], confidences, rtol=1e-9, atol=1e-10)


def test_what_one_channel_observes_corrects_another():
    learner = make(covariance={"heads": 1, "rank": 1})
    with torch.no_grad():
        learner.loading.fill_(1.0)
        state = learner.init_state(1)
        z = torch.zeros(1, 1, WIDTH, dtype=torch.float64)
        z[..., 0] = 3.0  # only the first channel is observed: the others' noise is large
        noise = torch.full_like(z, 1e6)
        noise[..., 0] = 0.1
        transition, process = torch.sigmoid(learner.transition_logit), torch.full((1, 1), 1e-3, dtype=torch.float64)
        estimate, _ = learner._filter_heads(z, noise, transition, process, state, None, Pass.over(z), None)
    assert (estimate.mean > 2.5).all()


def test_a_covariance_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="12 channels are not divisible by 5 heads") as error:
        make(covariance={"heads": 5, "rank": 1})
    assert "heads: 4" in str(error.value.hint)
    with pytest.raises(InputError, match="rank 7 for heads of 6 channels"):
        make(covariance={"heads": 2, "rank": 7})

"""What must hold for every learner of the table, in float64 and at odd lengths."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from synthe_core import state as states
from synthe_core.layers import LAYERS, build, parse
from synthe_core.layers.learner import Learner
from synthe_core.layers.trace import Trace
from synthe_core.model import block as block_module
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.skip_init import skip_init
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.dispatch import use_kernels
from tests.laws.entries import CASES, CAUSAL, FIRST, WIDTH, as_built, block_of, case_name, inputs, make, run

each_learner = pytest.mark.parametrize("case", CASES, ids=case_name)
each_causal_learner = pytest.mark.parametrize("case", CAUSAL, ids=case_name)
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
BY_DEFINITION: dict[str, tuple[str, ...]] = {
    "window_attention": (),
    "probed_attention": (),
    "forgetting_attention": ("forgetting_attention",),
    "deep_memory": ("titans", "ttt"),
    "log_linear_attention": ("log_linear",),
    "mamba3_scan": ("mamba3",),
    "mesa": ("mesa",),
}
"""Operators whose kernels take more products than their definition, and the learners that use them at any settings."""


def assert_same_state(one, other, **tolerance):
    for (name, a), (_, b) in zip(states.named_leaves(one), states.named_leaves(other), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@each_causal_learner
@pytest.mark.parametrize("cuts", [(1,), (36,), (5, 6, 23), tuple(range(1, 37))], ids=str)
def test_any_split_gives_the_same(case, cuts):
    learner, x = make(case), inputs(2, 37)
    whole, final, ctx = run(learner, x)
    state, pieces, signals = None, [], []
    for start, end in zip((0, *cuts), (*cuts, 37), strict=True):
        y, state, piece_ctx = run(learner, x[:, start:end], state, start)
        pieces.append(y)
        signals.append(piece_ctx.signals)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)
    assert_same_state(state, final, **CLOSE)
    for name, value in ctx.signals.items():
        torch.testing.assert_close(torch.cat([s[name] for s in signals], 1), value, **CLOSE)


@each_causal_learner
@pytest.mark.parametrize("past", [0, 7])
def test_the_future_never_alters_the_past(case, past):
    learner, x = make(case), inputs(2, 29 + past).requires_grad_()
    state = run(learner, x[:, :past])[1] if past else None
    y, _, ctx = run(learner, x[:, past:], state, past)
    for t in (0, 13, 27):
        seen = [y[:, : t + 1]] + [signal[:, : t + 1] for signal in ctx.signals.values()]
        (gradient,) = torch.autograd.grad(sum(s.sum() for s in seen), x, retain_graph=True)
        assert gradient[:, past + t + 1 :].abs().max() == 0
        if past + t:  # a memory that is read before it is written has nothing to say to the very first token
            assert gradient[:, past + t].abs().max() > 0


@each_learner
def test_rows_are_independent(case):
    learner, x = make(case), inputs(3, 21)
    y, final, _ = run(learner, x)
    for row in range(3):
        alone, state, _ = run(learner, x[row : row + 1])
        torch.testing.assert_close(alone, y[row : row + 1], **CLOSE)
        assert_same_state(state, states.take(final, torch.tensor([row])), **CLOSE)
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(learner, x)[0][1].sum(), x)
    assert gradient[[0, 2]].abs().max() == 0


@each_causal_learner
def test_padding_is_inert(case):
    learner, x = make(case), inputs(4, 23)
    lengths = torch.tensor([23, 9, 1, 0])
    real = torch.arange(23) < lengths[:, None]
    one, final, _ = run(learner, torch.where(real[..., None], x, 1e3), lengths=lengths)
    other, _, _ = run(learner, torch.where(real[..., None], x, -7.0), lengths=lengths)
    assert torch.equal(one[real], other[real])
    # What follows padding must go on from the last real token, at its own position in each row.
    more = inputs(4, 6, seed=5)
    after = run(learner, more, final, start=lengths)[0]
    for row, length in enumerate(lengths.tolist()):
        expected = run(learner, torch.cat([x[row : row + 1, :length], more[row : row + 1]], 1))[0]
        torch.testing.assert_close(one[row, :length], expected[0, :length], **CLOSE)
        torch.testing.assert_close(after[row], expected[0, length:], **CLOSE)


@each_causal_learner
def test_forks_go_on_as_their_source(case):
    learner, x, more = make(case), inputs(3, 11), inputs(5, 9, seed=3)
    state = run(learner, x)[1]
    index = torch.tensor([2, 0, 0, 1, 2])
    forked = run(learner, more, states.take(state, index), start=11)[0]
    expected = run(learner, torch.cat([x[index], more], 1))[0][:, 11:]
    torch.testing.assert_close(forked, expected, **CLOSE)


@each_learner
def test_nothing_is_stored_on_the_module(case):
    learner = make(case)
    run(learner, inputs(2, 5))  # lazily made constants are made now
    before = {name: dict(vars(module)) for name, module in learner.named_modules()}
    run(learner, inputs(3, 17))
    for name, module in learner.named_modules():
        now = vars(module)
        assert now.keys() == before[name].keys()
        assert all(now[key] is before[name][key] for key in now), name


@each_learner
def test_every_gradient_is_finite_and_every_parameter_is_used(case):
    learner, x = make(case), inputs(2, 19).requires_grad_()
    y, _, ctx = run(learner, x, run(learner, inputs(2, 8, seed=4))[1], start=8)
    total = (y * torch.randn_like(y)).sum() + sum((v * torch.randn_like(v)).sum() for v in ctx.signals.values())
    total = total + sum(loss for _, loss in ctx.losses)
    total.backward()
    assert torch.isfinite(x.grad).all()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@each_learner
def test_tracing_leaves_outputs_bit_equal(case):
    learner, x = make(case), inputs(2, 15)
    plain = run(learner, x)[0]
    traced = run(learner, x, trace=Trace())[0]
    assert torch.equal(plain, traced)


@each_causal_learner
def test_state_is_float32_batch_first_and_bounded(case):
    learner = as_built(case)
    x = torch.randn(3, 40, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state, _ = run(learner, x)
        again = run(learner, x[:, :13], state, start=40)[1]
    fresh = learner.init_state(3)
    for (name, leaf), (_, zero) in zip(states.named_leaves(state), states.named_leaves(fresh), strict=True):
        assert leaf.dtype == torch.float32 == zero.dtype, name
        assert leaf.shape[0] == 3 == zero.shape[0], name
        assert torch.isfinite(leaf).all(), name
    if "window" not in LAYERS[case["type"]].Config.model_fields or isinstance(case.get("window"), int):
        assert states.nbytes(again) == states.nbytes(state)
    assert torch.isfinite(y).all()


@each_learner
@pytest.mark.parametrize("time", [1, 40])
def test_state_bytes_are_those_of_the_state(case, time):
    learner = as_built(case)
    state = run(learner, torch.randn(1, time, WIDTH))[1]
    assert learner.state_bytes(time) == states.nbytes(state)


@each_learner
def test_state_survives_a_file(case, tmp_path):
    from safetensors.torch import load_file, save_file

    learner = make(case)
    state = run(learner, inputs(2, 9))[1]
    tensors = states.to_tensors(state)
    save_file(tensors, tmp_path / "state.safetensors")
    restored = states.from_tensors(state, load_file(tmp_path / "state.safetensors"))
    assert_same_state(restored, state, rtol=0, atol=0)


@each_learner
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_long_and_loud_inputs_stay_finite_in_bfloat16(case, scale):
    torch.manual_seed(0)
    learner = as_built(case)
    x = (scale * torch.randn(1, 8192 if case in FIRST else 512, WIDTH)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state, ctx = run(learner, x)
    (y.float().square().mean() + sum(loss for _, loss in ctx.losses)).backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(leaf).all() for _, leaf in states.named_leaves(state))
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())


@each_causal_learner
def test_a_learners_own_initial_values_survive_the_model(case, monkeypatch):
    built: list[tuple[Learner, dict[str, torch.Tensor]]] = []

    def remembering(spec, width):
        learner = build(spec, width)
        built.append((learner, {name: p.detach().clone() for name, p in learner.named_parameters()}))
        return learner

    monkeypatch.setattr(block_module, "build", remembering)
    LanguageModel(ModelSpec.model_validate({"width": WIDTH, "blocks": 2, "block": block_of(case)}), 11)
    assert len(built) == 2 * len(block_of(case))
    for learner, values in built:
        for name, parameter in learner.named_parameters():
            assert torch.equal(parameter, values[name]), name


@each_learner
def test_it_publishes_its_declared_signals(case):
    specs = [parse(each) for each in block_of(case)]
    said = {name for spec in specs for name in LAYERS[spec.type].publishes(spec)}
    x = inputs(2, 5)
    for ctx in (run(make(case), x)[2], run(make(case), x, lengths=torch.tensor([5, 0]))[2]):
        assert ctx.signals.keys() == said
        assert all(signal.shape == x.shape[:2] for signal in ctx.signals.values())


@each_learner
def test_flops_count_at_least_the_matrix_products_that_run(case):
    learner, x = make(case), inputs(1, 64)
    # In blocks attention multiplies keys outside the window too, chunks of several writes or states a token have many
    # products, and conjugate gradients take many:
    capped = getattr(learner.config, "logit_cap", None) is not None
    by_definition = capped or any(case["type"] in learners for learners in BY_DEFINITION.values())
    as_defined = use_kernels(**dict.fromkeys(BY_DEFINITION, "reference")) if by_definition else nullcontext()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), as_defined:
        run(learner, x)
    products = sum(n for name, n in counter.get_flop_counts().get("Global", {}).items() if "mm" in str(name))
    assert products > 0
    assert products <= 64 * learner.flops(64) <= 10 * products


@each_learner
def test_what_is_drawn_is_in_its_tensors(case):
    """A checkpoint is loaded into a model whose initial values were never drawn."""
    drawn, x = make(case), inputs(1, 9)
    numbers = torch.get_rng_state()
    with skip_init():
        loaded = as_built(case).double()
    assert torch.equal(torch.get_rng_state(), numbers)
    loaded.load_state_dict(drawn.state_dict())
    torch.testing.assert_close(run(loaded, x)[0], run(drawn, x)[0], rtol=0, atol=0)

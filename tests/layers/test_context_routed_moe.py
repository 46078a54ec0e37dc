import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.layers import LAYERS, parse
from synthe_core.layers.context_routed_moe import ContextRoutedMoE
from synthe_core.layers.experts import Experts
from synthe_core.layers.learner import Pass
from synthe_core.layers.momentum import Momentum
from synthe_core.layers.trace import Trace
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import Session
from synthe_core.model.spec import ModelSpec
from synthe_core.state import named_leaves, nbytes

WIDTH, EXPERTS, TOP = 12, 5, 2


def make(**config):
    torch.manual_seed(0)
    config = {"experts": EXPERTS, "top_k": TOP, "hidden": 4, "channels": 6} | config
    learner = ContextRoutedMoE(ContextRoutedMoE.Config(**config), WIDTH).double()
    if learner.config.bias:
        with torch.no_grad():
            learner.bias.normal_(std=20)  # strengths of a few tokens are about 0.05
    return learner


def inputs(batch, time, seed=1):
    torch.manual_seed(seed)
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


def logits_of(learner, x, state=None):
    h = learner.down(x)
    context, _ = learner.context(h, state, Pass.over(h))
    return learner.router(h + context)


@pytest.mark.parametrize("bias", [False, True])
def test_strengths_follow_their_recurrence(bias):
    learner, x, lengths = make(bias=bias, rate=0.02, decay=0.97), inputs(3, 17), torch.tensor([17, 6, 0])
    before = learner(inputs(3, 4, seed=5), None, Pass.over(x[:, :4]))[1]
    trace = Trace(frozenset({"strength"}))
    after = learner(x, before, Pass.over(x, lengths, trace=trace))[1]
    logits = logits_of(learner, x, before.context)
    for row in range(3):
        strength = before.strength[row].clone()
        assert strength.max() > 0
        for t in range(lengths[row]):
            strength *= 0.97
            strength[logits[row, t].topk(TOP).indices] += 0.02
            torch.testing.assert_close(trace.records[0].value[row, t], strength, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(after.strength[row], strength, rtol=1e-12, atol=1e-15)
    assert torch.equal(after.strength[2], before.strength[2])


def test_a_token_is_routed_by_the_context_and_by_the_strengths_before_it():
    learner, x = make(bias=True, decay=0.9), inputs(2, 23)
    trace = Trace(frozenset({"chosen", "weight"}))
    state = learner.init_state(2)._replace(strength=0.1 * torch.rand(2, EXPERTS, dtype=torch.float64))
    learner(x, state, Pass.over(x, trace=trace))
    chosen, weight = (record.value for record in trace.records)
    logits = logits_of(learner, x)
    moved = 0
    for row in range(2):
        strength = state.strength[row].clone()
        for t in range(23):
            best = (logits[row, t] + learner.bias * strength).topk(TOP)
            assert chosen[row, t].tolist() == best.indices.tolist()
            torch.testing.assert_close(weight[row, t], best.values.softmax(0), rtol=1e-11, atol=1e-13)
            own = logits[row, t].topk(TOP).indices
            moved += set(own.tolist()) != set(best.indices.tolist())
            strength *= 0.9
            strength[own] += 0.01
    assert 5 < moved < 46  # the bias does decide, and not always


def test_the_bias_begins_at_nothing_and_learns():
    plain, biased = make(), make(bias=True)
    with torch.no_grad():
        biased.bias.zero_()
    x = inputs(2, 9)
    y = biased(x, None, Pass.over(x))[0]
    assert torch.equal(y, plain(x, None, Pass.over(x))[0])
    assert (ContextRoutedMoE(ContextRoutedMoE.Config(bias=True), WIDTH).bias == 0).all()
    (slope,) = torch.autograd.grad(y.square().sum(), biased.bias)
    assert slope.abs().max() > 0
    # Counts have no gradient: past the choice, strengths are constants to everything that was chosen by.
    state = biased(x, None, Pass.over(x))[1]
    assert not state.strength.requires_grad


def test_strengths_settle_at_the_share_of_use():
    learner = make(experts=3, top_k=1, rate=0.05, decay=0.9)
    x = inputs(1, 1).expand(1, 400, WIDTH)
    strength = learner(x, None, Pass.over(x))[1].strength[0]
    torch.testing.assert_close(strength.sum(), torch.tensor(0.5, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_router_sees_the_context_where_experts_see_a_token():
    x = inputs(2, 12)
    x[1, -1] = x[0, -1]  # the same token after different ones
    learner, blind = make(), Experts(Experts.Config(experts=EXPERTS, hidden=4), WIDTH).double()
    logits = logits_of(learner, x)[:, -1]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert torch.equal(blind.router(x)[0, -1], blind.router(x)[1, -1])


@pytest.mark.parametrize("bias", [False, True])
def test_strengths_survive_a_session_to_the_last_bit(bias, tmp_path):
    spec = {
        "width": WIDTH,
        "blocks": 2,
        "block": [{"type": "context_routed_moe", "experts": 4, "hidden": 4, "channels": 6, "bias": bias}],
    }
    torch.manual_seed(0)
    model = LanguageModel(ModelSpec.model_validate(spec), 31)
    tokens = torch.randint(31, (2, 40))
    with torch.no_grad():
        _, state = model.next_logits(tokens[:, :25])
        Session(state, tokens[:, 25]).save(tmp_path / "s.safetensors", model)
        loaded = Session.load(tmp_path / "s.safetensors", model)
        for (name, a), (_, b) in zip(named_leaves(loaded.state), named_leaves(state), strict=True):
            assert torch.equal(a, b), name
        strengths = [blocks[0].strength for blocks in loaded.state.blocks]
        assert all(strength.shape == (2, 4) and strength.sum() > 0.4 for strength in strengths)
        on, final = model(tokens[:, 25:], loaded.state)
        same, expected = model(tokens[:, 25:], state)
    assert torch.equal(on, same)
    assert torch.equal(final.blocks[1][0].strength, expected.blocks[1][0].strength)


def test_a_trace_separates_the_context_from_the_router():
    learner, x, trace = make(context="momentum"), inputs(2, 5), Trace()
    ctx = Pass.over(x, trace=trace)
    ctx.path = "blocks.0.1"
    learner(x, None, ctx)
    assert ctx.path == "blocks.0.1"
    where = {record.name: record.path for record in trace.records}
    assert where["average"] == "blocks.0.1.context"
    assert where["strength"] == where["counts"] == where["magnitude"] == "blocks.0.1"


def test_what_it_holds_is_counted_once():
    learner = make(context="attention", channels=16)
    own = WIDTH * 16 + 16 * EXPERTS
    inner = sum(p.numel() for p in learner.context.parameters())
    assert sum(p.numel() for p in learner.parameters()) == own + inner + EXPERTS * 3 * 4 * WIDTH
    assert learner.active_parameters() == own + inner + TOP * 3 * 4 * WIDTH
    assert learner.flops(9) == 2 * own + learner.context.flops(9) + 2 * TOP * 3 * 4 * WIDTH + 2 * EXPERTS
    x = inputs(1, 9)
    assert learner.state_bytes(9) == nbytes(learner(x, None, Pass.over(x))[1])  # attention's grows
    nested = make(context="experts", channels=64)
    idle = EXPERTS - TOP
    total = sum(p.numel() for p in nested.parameters())
    pool = nested.context.pool
    assert (
        total - nested.active_parameters() == idle * 3 * 4 * WIDTH + sum(p.numel() for p in pool.parameters()) * 6 // 8
    )


def test_invalid_contexts_are_refused(monkeypatch):
    with pytest.raises(InputError, match="unknown learner 'mambo'") as unknown:
        make(context="mambo")
    assert unknown.value.hint == "did you mean 'mamba'?"
    with pytest.raises(InputError, match="context_routed_moe: top_k 6 of 5 experts"):
        make(top_k=6)
    monkeypatch.setattr(Momentum, "causal", False)
    with pytest.raises(InputError, match="context momentum sees the whole text"):
        make(context="momentum")


def test_thalamus_is_an_alias_in_recipes():
    """Recipes may say `thalamus`; what is built, shown and saved has the learner's own name."""
    assert parse("thalamus") == parse("context_routed_moe")
    assert parse({"type": "thalamus", "experts": 4}).type == "context_routed_moe"
    assert LAYERS["thalamus"] is ContextRoutedMoE and "thalamus" in LAYERS and "thalamus" not in list(LAYERS)

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.layers.experts import Experts
from synthe_core.layers.learner import Pass, apply_buffer_updates
from synthe_core.layers.mlp import MLP
from synthe_core.layers.trace import Trace
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec

WIDTH = 12


def make(**config):
    torch.manual_seed(0)
    return Experts(Experts.Config(**config), WIDTH).double()


def inputs(batch, time, seed=1):
    torch.manual_seed(seed)
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


def run(learner, x, lengths=None, trace=None):
    ctx = Pass.over(x, lengths, trace=trace)
    return learner(x, None, ctx)[0], dict(ctx.losses)


def expert(learner, index, x):
    """What one expert makes of one token, from its slice of the weights."""
    gate, up = learner.pool.gate_up.weight.view(learner.config.experts, 2, -1, WIDTH)[index] @ x
    return learner.pool.out.weight.view(WIDTH, learner.config.experts, -1)[:, index] @ (F.silu(gate) * up)


@pytest.mark.parametrize("experts,top_k", [(4, 2), (3, 1), (3, 3), (8, 5)])
def test_every_token_gets_the_weighted_answers_of_its_best_experts(experts, top_k):
    learner, x = make(experts=experts, top_k=top_k, hidden=5), inputs(2, 7)
    y, _ = run(learner, x)
    for b in range(2):
        for t in range(7):
            logits = (learner.router.weight @ x[b, t]).detach()
            best = sorted(range(experts), key=lambda e: -logits[e])[:top_k]
            odds = torch.tensor([logits[e].exp() for e in best], dtype=torch.float64)
            weights = odds / (logits.exp().sum() if top_k == 1 else odds.sum())
            expected = sum(w * expert(learner, e, x[b, t]) for w, e in zip(weights, best, strict=True))
            torch.testing.assert_close(y[b, t], expected, rtol=1e-11, atol=1e-12)


def test_experts_of_a_latent_read_and_write_it_and_are_chosen_by_the_token():
    learner, x = make(experts=3, top_k=2, hidden=5, latent=7), inputs(1, 4)
    inner = Experts(Experts.Config(experts=3, top_k=2, hidden=5), 7).double().pool
    inner.load_state_dict(learner.pool.state_dict())
    expected = inner(x @ learner.into_latent.weight.T, learner.router(x), Pass.over(x)) @ learner.from_latent.weight.T
    torch.testing.assert_close(run(learner, x)[0], expected, rtol=1e-12, atol=1e-12)
    assert learner.active_parameters() == 3 * WIDTH + 2 * 7 * WIDTH + 2 * 3 * 5 * 7
    with pytest.raises(InputError, match="a shared expert would read the latent"):
        make(latent=7, shared=4)


def test_the_balance_loss_is_the_product_of_shares_and_probabilities():
    learner, x = make(experts=5, top_k=2, hidden=5, balance=0.3), inputs(3, 11)
    logits = learner.router(x).detach().requires_grad_()
    ctx = Pass.over(x)
    learner.pool(x, logits, ctx)
    ((name, loss),) = ctx.losses
    visits, probability = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for row in logits.detach().flatten(0, 1):
        visits[row.topk(2).indices] += 1
        probability += row.softmax(0) / 33
    share = visits / 66
    assert name == "router_balance"
    torch.testing.assert_close(loss, 0.3 * 5 * (share * probability).sum(), rtol=1e-12, atol=0)
    # By hand: d Σ_e f_e p_e / d l = p ⊙ (f - Σ_e f_e p_e), and the shares, being counts, have no gradient.
    p = logits.detach().softmax(-1)
    expected = 0.3 * 5 / 33 * p * (share - (p * share).sum(-1, keepdim=True))
    (slope,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-15)


def test_the_balance_loss_is_its_weight_where_all_are_alike_and_n_times_that_where_one_has_all():
    learner, x = make(experts=4, top_k=1, hidden=5, balance=0.5), inputs(2, 9)
    with torch.no_grad():
        learner.router.weight.zero_()
    assert run(learner, x)[1]["router_balance"].item() == pytest.approx(0.5)
    ctx = Pass.over(x)
    learner.pool(x, torch.tensor([0.0, 90.0, 0.0, 0.0], dtype=torch.float64).expand(2, 9, 4), ctx)
    assert dict(ctx.losses)["router_balance"].item() == pytest.approx(4 * 0.5)


def test_descending_the_balance_loss_spreads_the_tokens():
    learner, x = make(experts=6, top_k=2, hidden=5, balance=1.0), inputs(4, 50) + 0.7
    trace = Trace(frozenset({"counts"}))
    for _ in range(120):
        loss = run(learner, x, trace=trace)[1]["router_balance"]
        (slope,) = torch.autograd.grad(loss, learner.router.weight)
        with torch.no_grad():
            learner.router.weight -= 0.5 * slope
    first, last = (trace.records[i].value / 400 for i in (0, -1))
    assert first.max() > 0.3 and last.max() < 0.22 and last.min() > 0.1


def test_padding_counts_in_no_loss():
    learner = make(experts=4, top_k=2, hidden=5, z_loss=0.1)
    x, lengths = inputs(3, 8), torch.tensor([8, 3, 0])
    real = torch.cat([x[0], x[1, :3]])[None]
    padded, expected = run(learner, x, lengths)[1], run(learner, real)[1]
    assert padded.keys() == expected.keys() == {"router_balance", "router_z"}
    for name in padded:
        torch.testing.assert_close(padded[name], expected[name], rtol=1e-12, atol=0)
    y, nothing = run(learner, x, torch.zeros(3, dtype=torch.int64))
    assert all(value == 0 for value in nothing.values()) and y.isfinite().all()


def test_the_z_loss_is_the_mean_square_of_the_logits_log_sum():
    learner, x = make(experts=4, hidden=5, balance=0, z_loss=0.1), inputs(2, 5)
    losses = run(learner, x)[1]
    z = learner.router(x).exp().sum(-1).log()
    assert losses.keys() == {"router_z"}
    torch.testing.assert_close(losses["router_z"], 0.1 * z.square().mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_losses_of_all_blocks_are_part_of_the_objective(recompute):
    spec = {"width": WIDTH, "blocks": 3, "block": [{"type": "experts", "experts": 3, "hidden": 5, "balance": 0.2}]}
    torch.manual_seed(0)
    model = LanguageModel(ModelSpec.model_validate(spec), 17, recompute).double()
    tokens = torch.randint(17, (2, 9))
    loss, _ = model.loss(tokens, tokens)
    trace = Trace(frozenset({"counts"}))
    model(tokens, trace=trace)
    assert [record.path for record in trace.records] == ["blocks.0.0", "blocks.1.0", "blocks.2.0"]
    assert loss.auxiliary.keys() == {"router_balance"}
    torch.testing.assert_close(loss.objective, loss.total / 18 + loss.auxiliary["router_balance"])
    actual = torch.autograd.grad(loss.objective, [b.learners[0].router.weight for b in model.blocks])
    model.recompute = False
    alone = model.loss(tokens, tokens)[0]
    expected = torch.autograd.grad(alone.objective, [b.learners[0].router.weight for b in model.blocks])
    without = torch.autograd.grad(model.loss(tokens, tokens)[0].total / 18, model.blocks[0].learners[0].router.weight)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    assert not torch.allclose(without[0], expected[0])


def test_routing_is_as_exact_under_autocast():
    learner = make(experts=8, hidden=8).float()
    x = inputs(4, 64).to(torch.bfloat16)
    traces = Trace(frozenset({"chosen"})), Trace(frozenset({"chosen"}))
    plain = run(learner, x.float(), trace=traces[0])[0]
    with torch.autocast("cpu", torch.bfloat16):
        narrow = run(learner, x, trace=traces[1])[0]
    assert torch.equal(traces[0].records[0].value, traces[1].records[0].value)
    assert narrow.dtype == torch.bfloat16
    assert (narrow - plain).abs().max() < 0.02 * plain.abs().max()


def test_a_trace_has_every_experts_tokens():
    learner, x, trace = make(experts=6, top_k=2, hidden=5), inputs(3, 7), Trace()
    run(learner, x, torch.tensor([7, 2, 0]), trace)
    seen = {record.name: record.value for record in trace.records}
    logits = learner.router(x)
    counts, lengths = torch.zeros(6), torch.zeros(6, dtype=torch.float64)
    for b, t in [(0, t) for t in range(7)] + [(1, 0), (1, 1)]:
        assert seen["chosen"][b, t].tolist() == logits[b, t].topk(2).indices.tolist()
        torch.testing.assert_close(seen["weight"][b, t], logits[b, t].topk(2).values.softmax(0))
        torch.testing.assert_close(
            seen["entropy"][b, t], torch.distributions.Categorical(logits=logits[b, t]).entropy()
        )
        for e in seen["chosen"][b, t].tolist():
            counts[e] += 1
            lengths[e] += expert(learner, e, x[b, t]).norm()
    assert seen["counts"].tolist() == counts.tolist() and counts.sum() == 18
    torch.testing.assert_close(seen["magnitude"], lengths / counts.clamp_min(1), rtol=1e-10, atol=1e-12)
    assert seen["sparsity"] == (counts == 0).double().mean()


def test_invalid_sizes_are_refused():
    with pytest.raises(InputError, match="experts: top_k 5 of 4 experts") as refused:
        make(experts=4, top_k=5)
    assert refused.value.hint == "top_k may be 1 to 4"
    for bad in ({"experts": 1}, {"top_k": 0}, {"balance": -1}, {"hidden": 0}, {"capacity": 1.25}):
        with pytest.raises(ValidationError):
            Experts.Config.model_validate(bad)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_what_a_token_meets_is_counted(top_k):
    learner = make(experts=4, top_k=top_k, hidden=5)
    assert learner.active_parameters() == 4 * WIDTH + top_k * 3 * 5 * WIDTH
    assert learner.flops(8) == 2 * learner.active_parameters()
    assert sum(p.numel() for p in learner.parameters()) == 4 * WIDTH + 4 * 3 * 5 * WIDTH


def test_by_default_a_token_costs_as_much_as_an_mlp():
    learner = Experts(Experts.Config(), 192)
    assert learner.pool.out.weight.shape == (192, 8 * 256)  # twice 256 of 8 experts: an MLP's 512
    assert Experts(Experts.Config(top_k=1), 192).pool.out.weight.shape == (192, 8 * 512)


def test_an_answer_begins_as_loud_as_an_mlps():
    torch.manual_seed(0)
    learner, mlp = Experts(Experts.Config(top_k=1), 192), MLP(MLP.Config(), 192)
    x, trace = torch.randn(1, 400, 192), Trace(frozenset({"magnitude"}))
    learner(x, None, Pass.over(x, trace=trace))
    expected = mlp(x, None, Pass.over(x))[0].norm(dim=-1).mean()
    torch.testing.assert_close(trace.records[0].value, expected.expand(8), rtol=0.15, atol=0)


def by_hand(learner, x):
    """One token x [D] through loops over experts and groups: its experts, the best first, and its output."""
    config, routing = learner.config, learner.pool.routing
    logits = (learner.router.weight @ x).detach()
    scores = 1 / (1 + (-logits).exp()) if config.scores == "sigmoid" else logits.exp() / logits.exp().sum()
    preferred = (scores + (routing.bias if config.bias_rate is not None else 0)).tolist()
    each = config.experts // config.groups
    sums = [sum(sorted(preferred[g * each : (g + 1) * each])[-2:]) for g in range(config.groups)]
    best_groups = sorted(range(config.groups), key=lambda g: -sums[g])[: config.top_groups]
    candidates = [e for e in range(config.experts) if e // each in best_groups]
    best = sorted(candidates, key=lambda e: -preferred[e])[: config.top_k]
    total = sum(scores[e] for e in best) if config.normalize or (config.normalize is None and config.top_k > 1) else 1
    y = sum(config.weight_scale * scores[e] / total * expert(learner, e, x) for e in best)
    if config.shared:
        gate, up = (learner.pool.shared.gate_up.weight @ x).chunk(2)
        own = learner.pool.shared.out.weight @ (F.silu(gate) * up)
        y = y + own * (1 / (1 + (-learner.pool.shared_gate.weight @ x).exp()) if config.shared_gate else 1)
    return best, y


@pytest.mark.parametrize(
    "keys",
    [
        {"normalize": False},
        {"top_k": 1, "normalize": True},
        {"scores": "sigmoid", "weight_scale": 2.5},
        {"scores": "sigmoid", "normalize": False, "bias_rate": 0.1, "top_k": 3},
        {"bias_rate": 0.0, "shared": 7},
        {"scores": "sigmoid", "groups": 3, "top_groups": 2, "top_k": 4, "bias_rate": 0.1},
        {"groups": 2, "top_k": 3, "shared": 4, "shared_gate": True},
    ],
    ids=str,
)
def test_scores_groups_biases_and_a_shared_expert(keys):
    learner, x = make(experts=6, hidden=5, **keys), inputs(2, 9)
    if "bias_rate" in keys:
        learner.pool.routing.bias.copy_(torch.linspace(-0.5, 0.5, 6)[torch.tensor([3, 0, 5, 1, 4, 2])])
    trace = Trace(frozenset({"chosen"}))
    y, _ = run(learner, x, trace=trace)
    for b in range(2):
        for t in range(9):
            best, expected = by_hand(learner, x[b, t])
            assert trace.records[0].value[b, t].tolist() == best
            torch.testing.assert_close(y[b, t], expected, rtol=1e-11, atol=1e-12)
    unused = 3 * 5 * WIDTH * (6 - learner.config.top_k)
    assert learner.active_parameters() == sum(p.numel() for p in learner.parameters()) - unused


def test_the_bias_moves_against_the_load_in_training_only():
    learner, x = make(experts=4, top_k=1, hidden=5, bias_rate=0.25, balance=0), inputs(1, 8)
    with torch.no_grad():
        learner.router.weight.zero_()
        learner.pool.routing.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))  # every token goes to expert 1
    for training in (True, False):
        ctx = Pass.over(x)
        learner.train(training)(x, None, ctx)
        assert len(ctx.buffer_updates) == training and not ctx.losses
        apply_buffer_updates(ctx.buffer_updates)
        assert learner.pool.routing.bias.tolist() == [0.25, 0.75, 0.25, 0.25]
    ctx = Pass.over(x)
    make(experts=4, hidden=5, bias_rate=0.0).train()(x, None, ctx)
    assert not ctx.buffer_updates


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"groups": 4}, "6 experts make no 4 groups"),
        ({"groups": 6}, "6 experts make no 6 groups of two or more"),
        ({"groups": 3, "top_k": 3}, "top_k 3 of the experts of 1 of 3 groups"),
        ({"groups": 2, "top_groups": 3}, "3 of 2 groups"),
        ({"shared_gate": True}, "shared_gate without a shared expert"),
    ],
    ids=str,
)
def test_groups_must_hold_the_choice(keys, said):
    with pytest.raises(InputError, match=said):
        make(experts=6, **keys)

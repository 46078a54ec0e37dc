"""The RWKV-7 learner: the paper's equations written out token by token, and its initial values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from synthe_core.errors import InputError
from synthe_core.layers import build, parse
from synthe_core.layers.learner import Pass
from synthe_core.layers.rwkv7 import VALUES, RWKV7State
from synthe_core.layers.trace import Trace
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.dispatch import use_kernels
from synthe_core.state import nbytes


def make(width=32, head_size=8, awake=False, **keys):
    """`awake`: its parameters moved away from the zeros that they begin with."""
    torch.manual_seed(0)
    learner = build(parse({"type": "rwkv7", "head_size": head_size, **keys}), width)
    if awake:
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


def run(learner, x, state=None, trace=None):
    return learner(x, state, Pass.over(x, trace=trace))


@pytest.mark.parametrize(
    "keys",
    [{}, {"values": "share", "decay_rank": 3, "rate_rank": 4}, {"values": "mix", "value_rank": 5, "norm_eps": 1e-3}],
    ids=str,
)
def test_is_the_papers_equations_from_any_state(keys):
    """The paper writes the state with values in its rows and multiplies it from the right."""
    learner = make(awake=True, **keys).double()
    torch.manual_seed(1)
    x, first = torch.randn(2, 2, 9, 32, dtype=torch.float64)
    state = RWKV7State(*(torch.randn_like(leaf) for leaf in learner.init_state(2)))
    heads = lambda y: y.view(2, 4, 8)  # noqa: E731
    with torch.no_grad():
        ctx = Pass.over(x)
        ctx.shared = {VALUES: first} if keys.get("values") == "mix" else {}
        y, after = learner(x, state, ctx)
        memory, before = state.memory.mT, state.last[:, 0]
        for t in range(9):
            xr, xw, xk, xv, xa, xg = (x[:, t] + (before - x[:, t]) * mu for mu in learner.mix)
            r, k, v = learner.receptance(xr), learner.key(xk), learner.value(xv)
            if keys.get("values") == "share":
                torch.testing.assert_close(ctx.shared[VALUES][:, t], v)
            elif keys.get("values") == "mix":
                v = v + (first[:, t] - v) * torch.sigmoid(learner.value_bias + learner.value_out(learner.value_in(xv)))
            d = learner.decay_bias + learner.decay_out(torch.tanh(learner.decay_in(xw)))
            w = torch.exp(-torch.exp(-F.softplus(-d) - 0.5))
            a = torch.sigmoid(learner.rate_bias + learner.rate_out(learner.rate_in(xa)))
            g = learner.gate_out(torch.sigmoid(learner.gate_in(xg)))
            removal = F.normalize(heads(k * learner.k_k), dim=-1)
            k = heads(k * (1 + (a - 1) * learner.k_a))
            r, v, w, a = heads(r), heads(v), heads(w), heads(a)
            passed = torch.diag_embed(w) - removal[..., :, None] * (a * removal)[..., None, :]
            memory = memory @ passed + v[..., :, None] * k[..., None, :]
            o = (memory @ r[..., None])[..., 0].flatten(1)
            o = F.group_norm(o, 4, learner.norm.flatten(), learner.norm_bias.flatten(), 8 * keys.get("norm_eps", 1e-5))
            bonus = (r * k * learner.r_k).sum(-1, keepdim=True) * v
            torch.testing.assert_close(y[:, t], learner.out((o + bonus.flatten(1)) * g), rtol=1e-9, atol=1e-9)
            before = x[:, t]
        torch.testing.assert_close(after.memory, memory.mT, rtol=1e-9, atol=1e-9)
        assert torch.equal(after.last[:, 0], x[:, -1])


def test_a_width_that_heads_do_not_divide_names_the_nearest_that_do():
    with pytest.raises(InputError, match="rwkv7: width 192 is not divisible by head_size 60") as error:
        make(192, 60)
    assert error.value.hint == "the nearest that works is head_size: 64"


def test_an_unknown_key_is_an_error():
    with pytest.raises(PydanticCustomError):
        build(parse({"type": "rwkv7", "heads": 2}), 32)


@pytest.mark.parametrize(("width", "ranks"), [(192, (32, 32, 64)), (512, (64, 64, 128))])
def test_the_defaults_serve_the_usual_widths(width, ranks):
    learner = build(parse("rwkv7"), width)
    y, state = run(learner, torch.randn(1, 40, width))
    assert y.abs().max() == 0 and state.memory.abs().max() > 0
    assert learner.state_bytes(40) == nbytes(state) == 4 * (width * 64 + width)
    assert ranks == tuple(part.out_features for part in (learner.decay_in, learner.rate_in, learner.gate_in))
    with torch.device("meta"):
        assert build(parse("rwkv7"), width).out.weight.is_meta


def test_initial_values_are_the_authors():
    """A few of them worked out by hand, for width 128 and heads of 64."""
    learner = make(128, 64)
    assert learner.mix[:, 0].tolist() == [1.0] * 6
    assert learner.mix[0, 64].item() == pytest.approx(1 - 0.5**0.1)
    assert learner.mix[2, 64].item() == pytest.approx(1 - 0.5**0.35)
    assert learner.decay_bias[0].item() == pytest.approx(-5.5 - 2.5)
    assert learner.decay_bias[127].item() == pytest.approx(0.5 + 2.5)
    assert learner.rate_bias[127].item() == pytest.approx(-0.19 + 0.3 + 0.2)
    assert learner.k_k[[0, 127]].tolist() == pytest.approx([0.76, 0.66])
    assert learner.k_a.unique().item() == pytest.approx(1.02)
    assert learner.r_k.unique().item() == pytest.approx(-0.04)
    for linear, bound in ((learner.receptance, 0.5), (learner.key, 0.05), (learner.value, 0.5)):
        assert 0.98 * bound < linear.weight.abs().max() * math.sqrt(128) <= bound
    assert learner.out.weight.abs().max() == learner.decay_in.weight.abs().max() == 0
    up = learner.gate_out.weight
    torch.testing.assert_close(up.T @ up, 0.01 * torch.eye(up.shape[1]))


def test_the_gates_that_are_traced_keep_to_their_range():
    trace = Trace()
    run(make(awake=True), 20 * torch.randn(2, 30, 32), trace=trace)
    shown = {record.name: record.value for record in trace.records}
    assert 0 <= shown["rate"].min() < 0.1 and 0.9 < shown["rate"].max() <= 1
    slowest, fastest = shown["decay"].max(), shown["decay"].min()
    assert 0.545 < fastest < 0.56 and 0.99 < slowest <= 1


def test_a_rate_of_one_replaces_what_was_written_at_a_key():
    """Two tokens with one key: w near 1 and a near 1 leave the second one's value alone in the memory."""
    learner = make(8, 8).double()
    with torch.no_grad():
        for mix in (learner.mix, learner.key.weight, learner.value.weight):
            mix.zero_()
        learner.key.weight[0, 0] = 1.0
        learner.value.weight[1:].normal_()
        learner.decay_bias.fill_(-40.0)
        learner.rate_bias.fill_(40.0)
        first, second = (torch.tensor([[[1.0, *values]]]).double() for values in ([2.0] * 7, [-3.0] * 7))
        _, both = run(learner, torch.cat([first, second], 1))
        _, alone = run(learner, second)
        assert alone.memory.abs().max() > 0.1
        torch.testing.assert_close(both.memory, alone.memory)


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
def test_autocast_keeps_the_memory_in_float32_and_reaches_into_no_kernel(kernel):
    learner, x = make(64, 16, awake=True), torch.randn(2, 40, 64)
    exact, exact_state = run(learner, x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(learner, x)
        with use_kernels(generalized_delta_rule=kernel):
            other, _ = run(learner, x)
    assert state.memory.dtype == state.last.dtype == torch.float32
    assert (y - exact).norm() < 0.03 * exact.norm()
    assert (state.memory - exact_state.memory).norm() < 0.03 * exact_state.memory.norm()
    assert (y - other).float().norm() < 2e-3 * y.float().norm()


def test_flops_count_matrices_and_memory():
    learner = make()
    vectors = 6 * 32 + 3 * 32  # the mixes, the bonus and the norms, two operations each
    assert learner.flops(100) == 2 * (4 * 32 * 32 + 3 * 2 * 32 * 32 + vectors) + 9 * 32 * 8


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_finite_over_8192_tokens_in_bfloat16(scale):
    learner, x = make(64, 16, awake=True), (scale * torch.randn(1, 8192, 64)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(learner, x)
    y.float().square().mean().backward()
    assert y.isfinite().all() and state.memory.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


def test_it_learns_to_recall():
    """Pairs of (key, value) tokens, then one key again: the answer is the value that came with it."""
    torch.manual_seed(0)
    keys, width, pairs = 8, 32, 4
    embed, learner, head = torch.nn.Embedding(2 * keys, width), make(width, 16), torch.nn.Linear(width, keys)
    modules = torch.nn.ModuleList([embed, learner, head])
    optimizer = torch.optim.Adam(modules.parameters(), 1e-2)
    for _ in range(150):
        order = torch.rand(32, keys).argsort(-1)[:, :pairs]
        values = torch.randint(keys, (32, pairs))
        queried = torch.randint(pairs, (32, 1))
        tokens = torch.cat([torch.stack([order, keys + values], -1).flatten(1), order.gather(1, queried)], 1)
        scores = head(run(learner, F.rms_norm(embed(tokens), (width,)))[0][:, -1])
        loss = F.cross_entropy(scores, values.gather(1, queried)[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scores.argmax(-1) == values.gather(1, queried)[:, 0]).float().mean() > 0.9


VALUES_KINDS = [
    [{"type": "rwkv7", "head_size": 8, "values": each}, {"type": "channel_mixing"}] for each in ("share", "mix")
]


def test_later_blocks_mix_in_the_values_of_the_first():
    torch.manual_seed(0)
    spec = {"width": 16, "blocks": 3, "block": [*VALUES_KINDS, VALUES_KINDS[1]], "norm": "layer"}
    text = torch.randint(0, 11, (2, 20))
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = LanguageModel(ModelSpec.model_validate(spec), 11, recompute).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.loss(text[:, :-1], text[:, 1:])[0].objective.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert {name.split(".")[1] for name in gradients[0] if "value_in" in name} == {"1", "2"}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-12, atol=1e-14, msg=name)
    with torch.no_grad():
        whole, _ = model(text)
        state, pieces = None, []
        for piece in text.split([7, 1, 12], 1):
            logits, state = model(piece, state)
            pieces.append(logits)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-9, atol=1e-10)
        before = model(text)[0]
        model.blocks[0].learners[0].value.weight.mul_(2)
        assert (model(text)[0] - before).abs().max() > 1e-3


def test_values_that_nobody_shares_are_refused_by_their_place():
    spec = {"width": 16, "blocks": 2, "block": VALUES_KINDS[::-1]}
    with pytest.raises(ValidationError, match="no learner before it shares 'rwkv7"):
        ModelSpec.model_validate(spec)
    routed = {"width": 16, "blocks": 3, "depth": {"min": 1}, "block": [["momentum"], *VALUES_KINDS]}
    with pytest.raises(ValidationError, match="no learner before it shares"):
        ModelSpec.model_validate(routed)
    ModelSpec.model_validate(routed | {"depth": {"min": 2}})

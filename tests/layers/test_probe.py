"""Attention that runs only at selected tokens. The laws are in tests/laws, behind a learner that publishes a signal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from synthe_core.errors import InputError
from synthe_core.layers import build, parse
from synthe_core.layers.attention import Attention
from synthe_core.layers.conditional_gate import Condition, ConditionalGate
from synthe_core.layers.learner import Pass, apply_buffer_updates
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.hashing import hash_uniform
from synthe_core.recipe.schema import Recipe
from tests.paths import RECIPES

WIDTH = 24
KEYS: list[dict[str, Any]] = [
    {"heads": 4, "window": 5},
    {"heads": 4, "kv_heads": 2, "window": 64, "bias": "all", "qk_norm": "weighted"},
    {"heads": 2, "head_size": 6, "window": 1, "rope": None, "qk_norm": False},
]


def pair(keys: dict[str, Any], **when: Any) -> tuple[Attention, Attention]:
    """A probe that reads the signal "ask", and attention of the same weights at every token."""
    torch.manual_seed(0)
    when = {"signal": "ask", "below": 0.5, "target": None, "explore": 0} | when
    probe, dense = (
        build(parse({"type": "attention", **keys, **more}), WIDTH).double() for more in ({"when": when}, {})
    )
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    dense.load_state_dict({name: value for name, value in probe.state_dict().items() if "conditional_gate" not in name})
    return probe, dense


def asks(batch: int, time: int, rate: float = 0.3, seed: int = 5) -> Tensor:
    """A signal below 0.5 at about `rate` of the tokens."""
    torch.manual_seed(seed)
    drawn = torch.rand(batch, time, dtype=torch.float64)
    return torch.where(drawn < rate, 0.45 * drawn / rate, 0.55 + 0.4 * drawn)


def over(x: Tensor, ask: Tensor, lengths: Tensor | None = None, start: Tensor | None = None) -> Pass:
    ctx = Pass.over(x, lengths, start)
    ctx.signals["ask"] = ask
    return ctx


def noise(batch: int, time: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, time, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("batch,time,rate", [(2, 23, 0.3), (1, 23, 0.3), (2, 23, 1.0), (2, 23, 0.0), (3, 1, 0.5)])
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_dense_attention_at_the_selected_tokens(keys, batch, time, rate, padded):
    """Values, state, and every gradient: of the parameters, of x and of the signal."""
    probe, dense = pair(keys, temperature=0.3)
    lengths = torch.tensor([time, 9, 0])[:batch].clamp_max(time) if padded else None
    upstream = torch.randn(batch, time, WIDTH, dtype=torch.float64)
    results = []
    for learner in (probe, dense):
        x, ask = noise(batch, time).requires_grad_(), asks(batch, time, rate).requires_grad_()
        past = noise(batch, 7)
        first = learner(past, None, over(past, asks(batch, 7, rate, seed=9)))[1]
        ctx = over(x, ask, lengths, torch.full((batch,), 7))
        y, after = learner(x, first, ctx)
        hard = (ask < 0.5).double()
        if ctx.mask is not None:
            hard = hard * ctx.mask
        if learner is dense:
            soft = ((0.5 - ask) / 0.3).sigmoid() * hard
            y = y * (hard + soft - soft.detach())[..., None]
        silent = y.detach()[hard == 0]
        assert torch.equal(silent, torch.zeros_like(silent))
        (y * upstream).sum().backward()
        gradients = {name: p.grad for name, p in learner.named_parameters()}
        results.append([y, *after, x.grad, ask.grad, *(gradients[name] for name, _ in dense.named_parameters())])
    for one, other in zip(*results, strict=True):
        if one is None:  # parameters of keys and queries, where no token is selected
            one = torch.zeros_like(other)
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_no_gradient_reaches_an_unselected_token_that_is_not_read():
    """With a window of 1 no query reads an unselected token, so its query, key and value have no gradient."""
    probe, _ = pair(KEYS[2])
    x, ask = noise(2, 11).requires_grad_(), asks(2, 11)
    probe(x, None, over(x, ask))[0].square().sum().backward()
    assert (x.grad[ask > 0.5] == 0).all()
    assert (x.grad[ask < 0.5].abs().amax(-1) > 0).all()


def test_one_token_at_a_time_equals_one_long_pass():
    probe, _ = pair(KEYS[0])
    x, ask = noise(2, 17), asks(2, 17)
    whole, final = probe(x, None, over(x, ask))
    state, pieces = None, []
    for t in range(17):
        one = x[:, t : t + 1]
        y, state = probe(one, state, over(one, ask[:, t : t + 1], start=torch.full((2,), t)))
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-11)
    for leaf, end in zip(state, final, strict=True):
        torch.testing.assert_close(leaf, end, rtol=1e-10, atol=1e-11)


def test_above_is_the_other_side():
    below, _ = pair(KEYS[0])
    above, _ = pair(KEYS[0], above=-0.5, below=None)
    x, ask = noise(2, 13), asks(2, 13)
    torch.testing.assert_close(above(x, None, over(x, -ask))[0], below(x, None, over(x, ask))[0], rtol=0, atol=0)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_what_is_skipped_is_what_is_not_computed(rate):
    """The matrices' operations, counted by torch, are the dense ones less the skipped ones; the scores' by hand."""
    probe, dense = pair(KEYS[0])
    x, lengths = noise(3, 40), torch.tensor([40, 8, 0])
    ctx = over(x, asks(3, 40, rate), lengths)
    counted = []
    for learner in (dense, probe):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            learner(x, None, ctx)
        counts = counter.get_flop_counts()["Global"]
        counted.append(sum(n for name, n in counts.items() if name in (torch.ops.aten.mm, torch.ops.aten.addmm)))
    silent = (ctx.signals["ask"] > 0.5) & ctx.mask
    seen = torch.arange(1, 41).clamp_max(5).expand(3, -1)
    matrices, scores = 4 * WIDTH * WIDTH * int(silent.sum()), 4 * WIDTH * int(seen[silent].sum())
    (skipped,), (name, rate_open) = ctx.skipped, ctx.measures[0]
    assert skipped.item() == matrices + scores
    padding = 4 * WIDTH * WIDTH * int((~ctx.mask).sum())  # not counted as skipped, as `flops` is of real tokens
    assert counted[0] - counted[1] == matrices + padding
    assert name == "gate_rate"
    assert rate_open.item() == pytest.approx(1 - int(silent.sum()) / 48)


@pytest.mark.parametrize("side,sign", [("below", 1.0), ("above", -1.0)])
def test_the_threshold_tracks_the_signal_until_the_target_share_is_selected(side, sign):
    gate = ConditionalGate(Condition.model_validate({"signal": "ask", side: 40.0, "target": 0.25, "explore": 0}))
    torch.manual_seed(0)
    rates = []
    for step in range(120):
        signal = sign * (5 + 0.001 * step + 0.3 * torch.randn(4, 256))  # far from where it began, and it drifts
        ctx = over(signal, signal)
        before = gate.threshold.clone()
        gate(ctx, torch.float32)
        assert torch.equal(gate.threshold, before)  # a pass moves nothing: the end of the step does
        apply_buffer_updates(ctx.buffer_updates)
        rates.append(ctx.measures[0][1].item())
    assert rates[0] in (0.0, 1.0)
    assert sum(rates[-40:]) / 40 == pytest.approx(0.25, abs=0.03)


def test_the_threshold_is_constant_in_evaluation_without_a_target_and_without_tokens():
    signal = torch.rand(2, 9)
    resting = ConditionalGate(Condition(signal="ask", below=0.3)).eval()
    fixed = ConditionalGate(Condition(signal="ask", below=0.3, target=None))
    for gate in (resting, fixed):
        ctx = over(signal, signal)
        gate(ctx, torch.float32)
        assert ctx.buffer_updates == []
    gate = ConditionalGate(Condition(signal="ask", below=0.3))
    ctx = over(signal, signal, lengths=torch.tensor([0, 0]))
    gate(ctx, torch.float32)
    apply_buffer_updates(ctx.buffer_updates)
    assert gate.threshold == torch.tensor(0.3)


def test_padding_moves_no_threshold():
    torch.manual_seed(0)
    signal, lengths = torch.rand(2, 9), torch.tensor([9, 4])
    moved = []
    for filling in (-5.0, 7.0):
        gate = ConditionalGate(Condition(signal="ask", below=0.3))
        filled = signal.masked_fill(torch.arange(9) >= lengths[:, None], filling)
        ctx = over(signal, filled, lengths)
        gate(ctx, torch.float32)
        apply_buffer_updates(ctx.buffer_updates)
        moved.append(gate.threshold)
    assert torch.equal(*moved) and moved[0] != 0.3


def test_training_holds_the_rate_of_a_model_that_learns():
    """A Kalman filter trains before the probe: its confidence moves, and a quarter of the tokens stays selected."""
    torch.manual_seed(0)
    when = {"signal": "confidence", "below": 0.35, "target": 0.25, "explore": 0}
    block = ["kalman", {"type": "attention", "heads": 2, "window": 8, "when": when}]
    model = LanguageModel(ModelSpec.model_validate({"width": 16, "blocks": 2, "block": block}), 11)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    rates = []
    for _ in range(80):
        text = torch.randint(0, 11, (4, 33))
        text[:, 16:] = text[:, :17]  # what was said comes again
        hidden, _, ctx = model.hidden(text[:, :-1])
        loss = torch.nn.functional.cross_entropy(model.head(hidden).flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        apply_buffer_updates(ctx.buffer_updates)
        rates.append([rate.item() for name, rate in ctx.measures if name == "gate_rate"])
    assert rates[0] == [0.0, 0.0]  # confidence begins above 0.35
    late = torch.tensor(rates[-30:]).mean(0)
    torch.testing.assert_close(late, torch.full((2,), 0.25), rtol=0, atol=0.04)


def test_training_explores_unselected_tokens_whose_gradient_reaches_the_signal():
    probe, _ = pair(KEYS[0], explore=0.4)
    x, ask = noise(4, 60), asks(4, 60, 0.2).requires_grad_()
    tried = over(x, ask)
    probe(x, None, tried)[0].square().sum().backward()
    explored = (ask.grad != 0) & (ask > 0.5)
    assert torch.equal(explored.any(0), (explored | (ask < 0.5)).all(0))  # the same positions in every row
    rate = explored.any(0).double().mean()
    assert 0.25 < rate < 0.55
    settled, expected = probe.eval()(x, None, over(x, ask))[0], pair(KEYS[0])[0](x, None, over(x, ask))[0]
    assert torch.equal(settled, expected)


def test_random_selects_by_position_alone_at_the_configured_rate():
    positions = torch.arange(1 << 16)
    drawn = hash_uniform(positions, torch.tensor(12345))
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn, 64, 0, 1) / len(drawn) * 64
    assert (counts - 1).abs().max() < 0.15  # 5 standard deviations of 1,024 draws
    bits = (drawn[:, None] * 2.0 ** torch.arange(1, 9)).floor() % 2 - 0.5
    assert (bits[1:].T @ bits[:-1]).abs().max() / len(bits) * 4 < 0.03  # neighbours do not agree, bit by bit
    assert not torch.equal(drawn, hash_uniform(positions, torch.tensor(12346)))


def test_random_probes_differ_between_learners_and_not_between_runs():
    when = {"signal": "random", "below": 0.25, "explore": 0}
    spec = {"type": "attention", "heads": 2, "when": when}
    torch.manual_seed(3)
    one, other = (build(parse(spec), WIDTH).double() for _ in range(2))
    x = noise(1, 64)
    masks = [learner.conditional_gate(Pass.over(x), torch.float64).mask for learner in (one, other)]
    assert not torch.equal(*masks)
    again = build(parse(spec), WIDTH).double()
    again.load_state_dict(one.state_dict())
    torch.testing.assert_close(again(x, None, Pass.over(x))[0], one(x, None, Pass.over(x))[0], rtol=0, atol=0)


def refusal(block: list[Any]) -> InputError:
    """The error of a recipe with this block."""
    source = (RECIPES / "tiny.yaml").read_text(encoding="utf-8")
    assert "\n  block:" in source
    with pytest.raises(InputError) as caught:
        Recipe.load(RECIPES / "tiny.yaml", [f"model.block={block}"])
    return caught.value


def test_an_unpublished_signal_is_refused_with_its_publishers():
    probe = {"type": "attention", "when": {"signal": "confidence", "below": 0.3}}
    for block in ([probe, "mlp"], [probe, {"type": "kalman"}]):  # after is too late
        error = refusal(block)
        assert "model.block.0: no learner before it in the block publishes the signal 'confidence'" in error.message
        assert error.hint.startswith("put one that does before it: ") and "kalman" in error.hint
    error = refusal(["kalman", {"type": "attention", "when": {"signal": "confidnce", "below": 0.3}}])
    assert error.hint == "did you mean 'confidence'?"
    ModelSpec.model_validate({"width": 32, "blocks": 1, "block": ["kalman", probe]})


def test_a_signal_that_is_missing_from_a_pass_is_an_error():
    probe, _ = pair(KEYS[0])
    x = noise(1, 3)
    with pytest.raises(InputError, match="no learner before has published the signal 'ask'"):
        probe(x, None, Pass.over(x))


@pytest.mark.parametrize("sides", [{}, {"below": 0.1, "above": 0.2}], ids=str)
def test_exactly_one_side_of_the_threshold_is_required(sides):
    with pytest.raises(ValidationError, match="give one of `below` and `above`"):
        Condition.model_validate({"signal": "confidence", **sides})

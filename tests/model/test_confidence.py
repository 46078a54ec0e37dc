"""The confidence head: its training, and that it trains nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.cross_entropy import TopPrediction
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.yaml_reader import parse_yaml

VOCAB = 19


def model(confidence=None, **spec) -> LanguageModel:
    torch.manual_seed(0)
    block = [{"type": "kalman"}, {"type": "mlp", "hidden": 24}]
    given = {"width": 16, "blocks": 2, "block": block, "confidence": confidence} | spec
    return LanguageModel(ModelSpec.model_validate(given), VOCAB).double()


def text(batch=3, time=12):
    tokens = torch.randint(VOCAB, (batch, time + 1), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[1, 4:] = -100
    return tokens[:, :-1], targets


def test_its_loss_is_the_cross_entropy_of_being_right():
    net, (tokens, targets) = model({"hidden": 8, "weight": 0.5}), text()
    with torch.no_grad():
        net.confidence.out.weight.normal_()
    loss, _ = net.loss(tokens, targets)
    logits, _ = net(tokens)
    hidden, _, ctx = net.hidden(tokens)
    max_logprob, likeliest = logits.log_softmax(-1).max(-1)
    said, right = net.confidence(hidden, ctx.signals, max_logprob).sigmoid(), (likeliest == targets).double()
    each = F.binary_cross_entropy(said, right, reduction="none")[targets != -100]
    torch.testing.assert_close(loss.auxiliary["confidence"], 0.5 * each.mean())
    assert net.spec.published == net.confidence.names == ("surprise", "confidence")


def test_it_moves_nothing_but_itself():
    """With it or without: the same initial values, the same gradients."""
    (tokens, targets), gradients = text(), []
    for spec in (None, {"hidden": 8}):
        net = model(spec)
        if spec:
            with torch.no_grad():
                net.confidence.out.weight.normal_()
        net.loss(tokens, targets)[0].objective.backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if not name.startswith("confidence.")})
        own = [p.grad.abs().max() for name, p in net.named_parameters() if name.startswith("confidence.")]
        assert len(own) == (5 if spec else 0) and all(size > 0 for size in own)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0)


def test_it_begins_as_the_probability_that_it_corrects():
    net, (tokens, _) = model({"hidden": 8}), text()
    hidden, _, ctx = net.hidden(tokens)
    max_logprob = net.head(hidden).log_softmax(-1).amax(-1)
    torch.testing.assert_close(net.confidence(hidden, ctx.signals, max_logprob).sigmoid(), max_logprob.exp())
    certain = net.confidence(hidden, ctx.signals, torch.zeros_like(max_logprob))
    assert certain.isfinite().all() and (certain.sigmoid() > 0.99).all()


def test_it_learns_the_frequency():
    """Where all tokens are alike, the minimum of the cross-entropy is at the share of correct ones."""
    net = model({"hidden": 8, "weight": 1.0})
    head = net.confidence
    hidden, signals = torch.ones(4, 50, 16).double(), {name: torch.ones(4, 50).double() for name in head.names}
    right = torch.arange(200).view(4, 50) % 10 < 3
    max_logprob = torch.full((4, 50), 0.5).double().log()
    scored = torch.ones_like(right)
    scored[0] = False  # its shares are as the others'
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(hidden, signals, TopPrediction(right, max_logprob), scored).backward()
        optimizer.step()
    torch.testing.assert_close(head(hidden, signals, max_logprob).sigmoid().mean().item(), 0.3, atol=1e-3, rtol=0)


def test_a_model_without_signals_has_a_head_too():
    net, (tokens, targets) = model({"hidden": 4}, block=[{"type": "momentum"}]), text()
    assert net.confidence.names == ()
    assert net.loss(tokens, targets)[0].auxiliary["confidence"] > 0


def test_recomputing_changes_no_gradient_of_it():
    (tokens, targets), gradients = text(), []
    for recompute in (False, True):
        net = model({"hidden": 8})
        net.recompute = recompute
        with torch.no_grad():
            net.confidence.out.weight.fill_(0.3)
        net.loss(tokens, targets)[0].objective.backward()
        gradients.append([p.grad for p in net.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_an_encoder_has_none():
    source = "{model: {width: 8, blocks: 1, block: [mlp], confidence: {}, head: {type: classify, classes: 2}}}"
    with pytest.raises(InputError, match="an encoder predicts no next token"):
        Recipe.from_source(parse_yaml(source, "test"))


def test_it_is_counted():
    plain, with_head = model(), model({"hidden": 8})
    assert with_head.flops(5) - plain.flops(5) == 2 * (8 * (16 + 3) + 8)
    from synthe_core.recipe.accounting import account

    recipe = Recipe.from_source(
        parse_yaml("{model: {width: 8, blocks: 1, block: [kalman], confidence: {hidden: 4}}}", "test")
    )
    counted = account(recipe)
    assert counted.by_learner["confidence"] == 4 * 11 + 4 + 4 + 1 + 1
    assert sum(counted.by_learner.values()) == counted.parameters

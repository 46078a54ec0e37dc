"""What must hold for whole models built of every learner: two blocks of it, each before an MLP."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from tests.laws.entries import CAUSAL, WIDTH, block_of, case_name

VOCAB, TIME = 31, 45
each_causal_learner = pytest.mark.parametrize("case", CAUSAL, ids=case_name)


def model_of(case, recompute=False):
    torch.manual_seed(0)
    spec = ModelSpec.model_validate(
        {"width": WIDTH, "blocks": 2, "block": [*block_of(case), {"type": "mlp", "hidden": 16}]}
    )
    return LanguageModel(spec, VOCAB, recompute).double()


def tokens(batch=2, time=TIME, seed=1):
    torch.manual_seed(seed)
    return torch.randint(0, VOCAB, (batch, time + 1))


@each_causal_learner
def test_no_later_token_alters_an_earlier_logit(case):
    """To the bit, and so by batch-invariant kernels: how many tokens one product gathers depends on them all."""
    model, text = model_of(case), tokens()[:, :-1]
    with torch.no_grad(), ExecutionContext(batch_invariant=True).activate():
        logits, _ = model(text)
        for t in (1, 22, TIME - 1):
            changed = text.clone()
            changed[:, t:] = (changed[:, t:] + 1) % VOCAB
            assert torch.equal(model(changed)[0][:, :t], logits[:, :t])
            assert not torch.equal(model(changed)[0][:, t:], logits[:, t:])


@each_causal_learner
def test_recomputing_activations_changes_no_gradient(case):
    text = tokens()
    gradients = []
    for recompute in (False, True):
        model = model_of(case, recompute)
        loss, _ = model.loss(text[:, :-1], text[:, 1:])
        loss.objective.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-12, atol=1e-14, msg=name)


@each_causal_learner
def test_the_loss_at_t_is_of_the_target_at_t(case):
    """Targets are given already shifted, and shifted nowhere else; -100 is not scored."""
    model, text = model_of(case), tokens()
    inputs, targets = text[:, :-1], text[:, 1:].clone()
    targets[0, 7] = -100
    with torch.no_grad():
        loss, _ = model.loss(inputs, targets)
        expected = F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(loss.each.double(), expected.view_as(targets), rtol=1e-6, atol=1e-6)
    assert loss.each[0, 7] == 0
    assert int(loss.scored) == targets.numel() - 1


@each_causal_learner
def test_text_in_pieces_has_the_logits_of_the_whole(case):
    model, text = model_of(case), tokens()[:, :-1]
    with torch.no_grad():
        whole, _ = model(text)
        first, state = model(text[:, :18])
        pieces = [first]
        for t in range(18, TIME):
            piece, state = model(text[:, t : t + 1], state)
            pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-8, atol=1e-9)

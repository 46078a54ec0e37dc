"""What must hold for models whose tokens leave out blocks, of every learner: the model's own laws, at uneven depths."""

from __future__ import annotations

import pytest
import torch

from synthe_core import state as states
from synthe_core.layers import LAYERS
from synthe_core.layers.learner import Pass, apply_buffer_updates
from synthe_core.model.depth import depths
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from tests.laws.entries import FIRST, WIDTH, case_name

VOCAB, TIME = 31, 29
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
CASES = [case for case in FIRST if LAYERS[case["type"]].causal]
each_causal_learner = pytest.mark.parametrize("case", CASES, ids=case_name)


def tokens(batch=3, time=TIME, seed=1):
    torch.manual_seed(seed)
    return torch.randint(0, VOCAB, (batch, time))


def model_of(case, mode="exit", recompute=False):
    """Three blocks, of which tokens choose two; the thresholds are those after two steps. A filter gives signals."""
    torch.manual_seed(0)
    block = [{"type": "kalman"}, case, {"type": "mlp", "hidden": 16}]
    depth = {"min": 1, "target": 0.5, "mode": mode, "hidden": 8}
    spec = ModelSpec.model_validate({"width": WIDTH, "blocks": 3, "block": block, "depth": depth})
    model = LanguageModel(spec, VOCAB, recompute).double()
    for seed in (5, 6):
        apply_buffer_updates(model.loss(tokens(seed=seed), tokens(seed=seed))[0].buffer_updates)
    return model


@pytest.mark.parametrize("case,mode", [*((case, "exit") for case in CASES), *((case, "skip") for case in CASES[:4])])
def test_text_in_pieces_goes_as_deep_as_the_whole(case, mode):
    model, text = model_of(case, mode), tokens()
    with torch.no_grad():
        assert depths(model, text).unique().numel() > 1
        whole, final = model(text)
        for cuts in ((1, 13), tuple(range(1, TIME))):
            pieces, state = [], None
            for start, end in zip((0, *cuts), (*cuts, TIME), strict=True):
                piece, state = model(text[:, start:end], state)
                pieces.append(piece)
            torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)
            more = tokens(time=8, seed=3)  # a window's empty places may differ, and what is read from them may not
            torch.testing.assert_close(model(more, state)[0], model(more, final)[0], **CLOSE)
            for one, other in zip(state.blocks[1:], final.blocks[1:], strict=True):
                assert torch.equal(one[-1], other[-1])


@each_causal_learner
def test_no_later_token_alters_an_earlier_logit_or_depth(case):
    model, text = model_of(case), tokens()
    with torch.no_grad():
        logits, deep = model(text)[0], depths(model, text)
        for t in (1, 17, TIME - 1):
            changed = text.clone()
            changed[:, t:] = (changed[:, t:] + 1) % VOCAB
            torch.testing.assert_close(model(changed)[0][:, :t], logits[:, :t], rtol=1e-11, atol=1e-13)
            assert torch.equal(depths(model, changed)[:, :t], deep[:, :t])
            assert not torch.equal(model(changed)[0][:, t:], logits[:, t:])


@each_causal_learner
def test_no_gradient_comes_from_a_later_token(case):
    model, text = model_of(case), tokens()
    x = model.embed(text, torch.zeros_like(text)).detach().requires_grad_()
    hidden, _ = model.run(x, model.init_state(3).blocks, Pass.over(x))
    for t in (0, 17, TIME - 2):
        (gradient,) = torch.autograd.grad(hidden[:, : t + 1].sum(), x, retain_graph=True)
        assert gradient[:, t + 1 :].abs().max() == 0
        assert gradient[:, t].abs().max() > 0
    (gradient,) = torch.autograd.grad(hidden[1].sum(), x)
    assert gradient[[0, 2]].abs().max() == 0


@each_causal_learner
def test_rows_of_different_depth_do_not_meet(case):
    model, text = model_of(case), tokens(batch=4)
    text[1] = text[1, 0]  # one row says the same thing over and over
    with torch.no_grad():
        logits, final = model(text)
        assert depths(model, text).sum(1).unique().numel() > 1
        for row in range(4):
            alone, state = model(text[row : row + 1])
            torch.testing.assert_close(alone, logits[row : row + 1], **CLOSE)
            more = tokens(batch=1, time=9, seed=3)
            forked = states.take(final, torch.tensor([row]))
            torch.testing.assert_close(model(more, forked)[0], model(more, state)[0], **CLOSE)


@each_causal_learner
def test_padding_is_inert(case):
    model, text = model_of(case, "skip"), tokens(batch=4)
    lengths = torch.tensor([TIME, 9, 1, 0])
    real = torch.arange(TIME) < lengths[:, None]
    with torch.no_grad():
        one, state = model(torch.where(real, text, 3), lengths=lengths)
        other, _ = model(torch.where(real, text, 4), lengths=lengths)
        torch.testing.assert_close(one[real], other[real], rtol=1e-11, atol=1e-13)
        more = tokens(batch=4, time=6, seed=3)
        after = model(more, state)[0]
        for row, length in enumerate(lengths.tolist()):
            expected = model(torch.cat([text[row : row + 1, :length], more[row : row + 1]], 1))[0]
            torch.testing.assert_close(one[row, :length], expected[0, :length], **CLOSE)
            torch.testing.assert_close(after[row], expected[0, length:], **CLOSE)


@each_causal_learner
def test_recomputing_activations_changes_no_gradient_and_no_threshold(case):
    text = tokens()
    gradients, updates = [], []
    for recompute in (False, True):
        model = model_of(case, recompute=recompute)
        loss, _ = model.loss(text[:, :-1], text[:, 1:])
        loss.objective.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        updates.append(loss.buffer_updates[0][1])
        assert len(loss.buffer_updates) == 1
    assert torch.equal(*updates)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-12, atol=1e-14, msg=name)


@each_causal_learner
def test_every_gradient_is_finite_and_the_router_learns(case):
    model, text = model_of(case), tokens()
    lengths = torch.tensor([TIME, 11, 2])
    targets = text.where(torch.arange(TIME) < lengths[:, None], -100)
    model.loss(text, targets, lengths=lengths)[0].objective.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None and not name.startswith("router."):
            continue  # a block that no token has run, or a tier that has not ticked yet
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0 or not name.startswith("router."), name

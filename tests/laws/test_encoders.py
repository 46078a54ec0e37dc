"""Laws of every learner that sees the whole text, and for whole encoders of any learner."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from synthe_core.layers import LAYERS, parse
from synthe_core.model.classifier import Classifier
from synthe_core.model.spec import ModelSpec
from tests.laws.entries import CASES, CAUSAL, WIDTH, block_of, case_name, inputs, make, run

WHOLE = [case for case in CASES if case not in CAUSAL]
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
each_encoder_learner = pytest.mark.parametrize("case", WHOLE, ids=case_name)


def test_there_are_some():
    assert WHOLE and CAUSAL


@each_encoder_learner
@pytest.mark.parametrize("time", [1, 2, 23, 64])
def test_padding_is_inert(case, time):
    learner, x = make(case), inputs(5, time)
    lengths = torch.tensor([time, min(9, time), 1, 0, time // 2])
    real = torch.arange(time) < lengths[:, None]
    one = run(learner, torch.where(real[..., None], x, 1e3), lengths=lengths)[0]
    other = run(learner, torch.where(real[..., None], x, -7.0), lengths=lengths)[0]
    assert torch.equal(one[real], other[real])
    for row, length in enumerate(lengths.tolist()):
        if length:
            alone = run(learner, x[row : row + 1, :length])[0]
            torch.testing.assert_close(one[row, :length], alone[0], **CLOSE)


@each_encoder_learner
def test_gradients_do_not_reach_padding(case):
    learner, x = make(case), inputs(2, 17).requires_grad_()
    lengths = torch.tensor([17, 6])
    real = torch.arange(17) < lengths[:, None]
    y = run(learner, x, lengths=lengths)[0]
    (gradient,) = torch.autograd.grad(y[real].square().sum(), x)
    assert gradient[~real].abs().max() == 0
    assert (gradient[real].abs().amax(-1) > 0).all()


@each_encoder_learner
def test_every_token_sees_the_whole_text(case):
    learner, x = make(case), inputs(1, 19).requires_grad_()
    y = run(learner, x)[0]
    for t in (0, 9, 18):
        (gradient,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        assert (gradient[0].abs().amax(-1) > 0).all()


@each_encoder_learner
def test_it_keeps_nothing_and_no_language_model_takes_it(case):
    assert make(case).state_bytes(100) == 0
    with pytest.raises(ValidationError, match="sees the whole text"):
        ModelSpec.model_validate({"width": WIDTH, "blocks": 1, "block": [case]})


@pytest.mark.parametrize(
    "patch", [None, {"stride": 4, "taps": 6}, {"strides": [2, 4]}], ids=["tokens", "patches", "scales"]
)
@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_padding_is_inert_in_a_whole_encoder(case, patch):
    torch.manual_seed(0)
    block = (
        ["kalman", case] if LAYERS[case["type"]].reads(parse(case)) else block_of(case)
    )  # who publishes what it reads
    spec = {"width": WIDTH, "blocks": 2, "block": block, "patch": patch, "head": {"classes": 3}}
    model = Classifier(ModelSpec.model_validate(spec), 11).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tokens = torch.randint(11, (4, 21))
    lengths = torch.tensor([21, 8, 1, 10])
    real = torch.arange(21) < lengths[:, None]
    one, other = (model(torch.where(real, tokens, pad), lengths) for pad in (0, 5))
    assert torch.equal(one, other)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(one[row : row + 1], model(tokens[row : row + 1, :length]), **CLOSE)

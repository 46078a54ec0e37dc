"""An encoder's report: its latents with their patches of text, what its learners emit, and the class it gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from synthe_core.data.tokenizers import open_tokenizer
from synthe_core.errors import InputError
from synthe_core.introspection.encoder import examine_encoder
from synthe_core.introspection.page import data
from synthe_core.introspection.report import lines
from synthe_core.model.classifier import Classifier
from synthe_core.model.spec import ModelSpec

TEXT = "to be or not to be"
BLOCK = ["spectral", {"type": "bidirectional_attention", "heads": 2}, {"type": "delta_memory", "heads": 1}]
CLASSES = ["calm", "loud", "odd"]


def encoder(patch=None) -> Classifier:
    torch.manual_seed(0)
    spec = {"width": 16, "blocks": 2, "block": BLOCK, "patch": patch, "head": {"classes": 3}}
    model = Classifier(ModelSpec.model_validate(spec), 257).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def examine(model, **options):
    tokenizer = open_tokenizer("bytes")
    return examine_encoder(model, tokenizer, list(tokenizer.encode(TEXT)), CLASSES, **options)


@pytest.mark.parametrize(("patch", "stride"), [(None, 1), ({"stride": 4}, 4), ({"strides": [2, 4]}, 2)])
def test_latents_are_patches_of_the_text_and_the_class_is_the_models(patch, stride):
    model = encoder(patch)
    report = examine(model, tokens=(1,))
    assert report.pieces == [TEXT[at : at + stride] for at in range(0, len(TEXT), stride)]
    ids = torch.tensor([list(TEXT.encode())])
    with torch.no_grad():
        expected = model(ids)[0].softmax(-1)
    shown = dict(report.facts["classes"])
    assert list(shown) == [CLASSES[i] for i in expected.argsort(descending=True).tolist()]
    np.testing.assert_allclose([shown[name] for name in CLASSES], expected, rtol=1e-5)
    weights = next(each for each in report.series if each.path == "pool")
    assert weights.rows.shape == (1, len(report.pieces)) and weights.rows.sum() == pytest.approx(1, rel=1e-5)
    assert {each.name for each in report.figures} >= {"energy", "gate"}
    assert {reads.learner for reads in report.reads} == {"delta_memory"} and max(r.error for r in report.reads) < 1e-4
    assert {fate.path for fate in report.fates} == {"blocks.0.2", "blocks.1.2"}


def test_it_predicts_no_token_and_is_drawn_and_written():
    report = examine(encoder({"stride": 4}))
    assert np.isnan(report.bits) and (report.predictions.rank == -1).all()
    first, *rest = (json.loads(json.dumps(line, allow_nan=False)) for line in lines(report))
    assert first["event"] == "model" and first["bits_per_token"] is None and len(first["classes"]) == 3
    assert sum(line["event"] == "token" for line in rest) == 5
    json.dumps(data([report]), allow_nan=False)


def test_only_latents_can_be_followed():
    with pytest.raises(InputError, match="no token 5: the text has 5"):
        examine(encoder({"stride": 4}), tokens=(5,))

"""Bits per byte: the sum over windows, whole or in chunks, equals that of the model's own logits."""

from __future__ import annotations

import math

import pytest
import torch

from synthe_core.data.stream import Window
from synthe_core.evaluation.bits_per_byte import TextScore, evaluate_bits_per_byte
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec

BLOCK = ["momentum", {"type": "delta", "heads": 2}, {"type": "attention", "heads": 2, "window": 8}, "mlp"]


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    spec = ModelSpec.model_validate({"width": 16, "blocks": 2, "block": BLOCK, "tie": False})
    model = LanguageModel(spec, 23).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def windows() -> list[Window]:
    tokens = torch.randint(23, (5, 13), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    return [Window(inputs[:3], targets[:3], 100.0), Window(inputs[3:], targets[3:], 50.0)]


@pytest.mark.parametrize("chunk", [None, 5, 12])
def test_it_is_that_of_the_models_logits(model, chunk):
    losses, scores = [], []
    for score in evaluate_bits_per_byte(model, windows(), ExecutionContext(), chunk):
        losses.append(score.token_losses)
        scores.append((score.rows, score.tokens))
    expected = 0.0
    for window in windows():
        with torch.no_grad():
            logits = model(window.inputs)[0].log_softmax(-1)
        expected -= float(logits.gather(-1, window.targets[..., None]).double().sum())
    assert score.bits_per_byte == pytest.approx(expected / math.log(2) / 150, rel=1e-5)
    values = score.values()
    assert values["loss"] == pytest.approx(expected / 60, rel=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(expected / 60), rel=1e-5)
    assert values["bits_per_byte"] == score.bits_per_byte
    assert sum(float(each.sum()) for each in losses) == pytest.approx(expected, rel=1e-5)
    passes = 2 * -(-12 // (chunk or 12))
    assert len(scores) == passes and scores[-1] == (5, 60)
    assert not any(each.requires_grad for each in losses)


def test_text_without_bytes_has_no_bits_per_byte():
    assert math.isnan(TextScore().bits_per_byte)

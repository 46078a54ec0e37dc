"""The step of a token in place, against ordinary passes: logits, signals and every state, token after token."""

from __future__ import annotations

import pytest
import torch

from synthe_core import state as states
from synthe_core.inference.captured_decode import CapturedStep, uncaptured
from synthe_core.inference.in_place_step import InPlaceStep, refusal
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.quantized_model import quantizable_matrices, set_matrix
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.dispatch import use_kernels
from synthe_core.quantization.quantize import quantize

REFERENCES = {
    name: "reference"
    for name in ("delta_rule", "gated_average", "kalman_filter", "rms_norm", "short_conv", "silu_gate", "swiglu")
}
BLOCK = [
    {"type": "momentum"},
    {"type": "delta", "heads": 2},
    {"type": "kalman"},
    {"type": "mlp", "hidden": 20},
]
VARIANTS = {
    "flagship": BLOCK,
    "others": [
        {"type": "momentum", "gate": False},
        {"type": "delta", "heads": 3, "key_size": 5, "value_size": 6, "conv": 0, "gate_function": "sigmoid"},
        {"type": "kalman", "rank": 20},
        {"type": "mlp", "hidden": 17, "bias": True},
    ],
    "more": [
        {"type": "delta", "heads": 2, "gate": False, "decay": False, "beta_range": [0.0, 2.0], "conv_bias": True},
        {"type": "delta", "heads": 2, "overwrite": False, "scale": 0.7, "query_scale": 2.0},
        {"type": "gla", "heads": 2},
        {"type": "kalman"},
    ],
}


def model_of(block) -> LanguageModel:
    torch.manual_seed(0)
    spec = ModelSpec.model_validate({"width": 24, "blocks": 2, "block": block, "tie": True})
    model = LanguageModel(spec, 31).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases that are not all equal
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def compare(model, tolerance, rows=2):
    assert refusal(model) is None
    tokens = torch.randint(31, (rows, 5))
    step = CapturedStep(model, rows, uncaptured)
    assert isinstance(step._in_place, InPlaceStep)
    with use_kernels(**REFERENCES):
        _, expected = model.next_logits(tokens[:, :2])
    ours = expected
    for index in range(2, 5):
        with use_kernels(**REFERENCES):
            hidden, expected, ctx = model.hidden(tokens[:, index : index + 1], expected)
            logits = model.head(hidden[:, 0])
        output = step(tokens[:, index : index + 1], ours)
        ours = output.state
        for actual, wanted in ((output.logits, logits), (output.hidden, hidden)):
            torch.testing.assert_close(actual, wanted, atol=tolerance, rtol=tolerance)
        assert output.signals.keys() == ctx.signals.keys()
        for name, signal in ctx.signals.items():
            torch.testing.assert_close(output.signals[name], signal, atol=tolerance, rtol=tolerance)
        for (_, actual), (_, wanted) in zip(states.named_leaves(ours), states.named_leaves(expected), strict=True):
            torch.testing.assert_close(actual, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_float32(name):
    compare(model_of(VARIANTS[name]), 1e-5)


@pytest.mark.parametrize("format", ["int8", "int4", "bfloat16"])
def test_codes_of_quantized_maps(format):
    model = model_of(VARIANTS["flagship"])
    for name, weight in quantizable_matrices(model).items():
        if name.startswith("blocks."):
            set_matrix(model, weight, quantize(weight, format))
    compare(model, 1e-5, rows=3)

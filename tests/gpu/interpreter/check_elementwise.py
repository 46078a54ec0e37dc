"""Kernels of rows and of single numbers: norm, rotary positions, gates, short convolution, softmax error."""

from __future__ import annotations

import pytest
import torch

from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.rotary import rotary
from synthe_core.ops.short_conv import short_conv
from synthe_core.ops.silu_gate import silu_gate
from synthe_core.ops.softmax_error import softmax_error
from synthe_core.ops.swiglu import swiglu
from tests.gpu.interpreter.comparison import assert_equal, draws

ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
each_type = pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)


@pytest.mark.parametrize(
    ("dtype", "out"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_rms_norm(dtype, out):
    normal, _ = draws(0, dtype)
    arguments = {"x": normal(3, 25, 21), "weight": normal(21), "eps": 1e-5, "dtype": out}
    assert_equal(rms_norm, "triton", arguments, 2 * max(ROUNDING[dtype], ROUNDING[out]))


@each_type
@pytest.mark.parametrize("eps", [None, 1e-5], ids=["plain", "normed"])
@pytest.mark.parametrize("half", [6, 4, 0], ids=str)
def test_rotary(dtype, eps, half):
    normal, uniform = draws(0, dtype)
    angle = 3 * uniform(2, 5, half).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = normal(2, 5, 3, 24)[..., :13] if half < 6 else normal(2, 5, 3, 13)
    arguments = {"x": x, "cos": angle.cos(), "sin": angle.sin(), "eps": eps}
    assert_equal(rotary, "triton", arguments, 2 * ROUNDING[dtype], constants=("cos", "sin"))


@each_type
def test_swiglu(dtype):
    normal, _ = draws(0, dtype)
    assert_equal(swiglu, "triton", {"gate_up": 3 * normal(2, 9, 82)}, ROUNDING[dtype])


@pytest.mark.parametrize(
    ("dtype", "out"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_silu_gate(dtype, out):
    normal, _ = draws(0, dtype)
    gate = 3 * normal(2, 9, 50).to(out)
    assert_equal(silu_gate, "triton", {"value": normal(2, 9, 21), "gate": gate[..., 7:28]}, ROUNDING[out])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [(2, 1, 5, 4), (1, 2, 70, 4), (2, 37, 40, 3), (1, 5, 3, 1), (1, 3, 3, 16)], ids=str)
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "plain"])
@pytest.mark.parametrize("state", [True, False], ids=["started", "fresh"])
def test_short_conv(sizes, dtype, silu, state):
    normal, _ = draws(0, dtype)
    batch, time, width, taps = sizes
    arguments = {
        "x": normal(batch, time, width),
        "weight": normal(width, taps),
        "state": normal(batch, taps - 1, width) if state else None,
        "silu": silu,
        "bias": normal(width) if silu else None,
    }
    assert_equal(short_conv, "triton", arguments, 2 * ROUNDING[dtype])


@each_type
@pytest.mark.parametrize("width", [7, 3001], ids=str)
def test_softmax_error(dtype, width):
    normal, _ = draws(0, dtype)
    logits = 5 * normal(4, width)
    logits[1, 3] = -torch.inf
    logits[2] += 60
    labels = torch.tensor([3, 0, -100, width - 1])
    expected = softmax_error.reference(logits.clone(), labels)
    losses, errors = softmax_error.named("triton")(logits.clone(), labels)
    torch.testing.assert_close(losses, expected[0], rtol=ROUNDING[losses.dtype], atol=ROUNDING[losses.dtype])
    torch.testing.assert_close(errors, expected[1], rtol=ROUNDING[dtype], atol=ROUNDING[dtype])

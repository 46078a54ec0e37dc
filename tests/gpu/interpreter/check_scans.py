"""The scans of every channel by itself: linear scan and gated average."""

from __future__ import annotations

import math

import pytest
import torch

from synthe_core.ops.gated_average import gated_average
from synthe_core.ops.linear_scan import linear_scan
from synthe_core.ops.mlstm import EMPTY_SCALE, running_maximum
from tests.gpu.interpreter.comparison import assert_equal, draws

shapes = pytest.mark.parametrize("shape", [(2, 1, 5), (1, 2, 33), (2, 71, 40)], ids=str)
precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["float64", "float32"]
)


@shapes
@precisions
@pytest.mark.parametrize("state", [True, False], ids=["started", "fresh"])
def test_linear_scan(shape, dtype, tolerance, state):
    normal, uniform = draws(0, dtype)
    decay = uniform(*shape)
    decay[:, ::7] = 0
    arguments = {"decay": decay, "value": normal(*shape), "state": normal(shape[0], shape[2]) if state else None}
    assert_equal(linear_scan, "triton", arguments, tolerance)


@shapes
@precisions
@pytest.mark.parametrize("state", [True, False], ids=["started", "fresh"])
def test_gated_average(shape, dtype, tolerance, state):
    normal, _ = draws(1, dtype)
    gate = 3 * normal(*shape)
    gate[:, ::5] = math.inf  # padding
    gate[:, 3::9] = -200.0
    arguments = {"gate": gate, "value": normal(*shape), "state": normal(shape[0], shape[2]) if state else None}
    assert_equal(gated_average, "triton", arguments, tolerance)


@precisions
@pytest.mark.parametrize("time", [1, 2, 150], ids=str)
def test_running_maximum(time, dtype, tolerance):
    """-inf writes nothing, and a scale of -1e30 hides nothing that comes after."""
    normal, uniform = draws(2, dtype)
    value, step, first = 9 * normal(2, time, 3), -uniform(2, time, 3), normal(2, 3)
    value[:, ::4], first[1] = -math.inf, EMPTY_SCALE
    m, expected = first, []
    for t in range(time):
        m = torch.maximum(m + step[:, t], value[:, t])
        expected.append(m)
    actual = running_maximum(value, step, first)
    torch.testing.assert_close(actual, torch.stack(expected, 1), rtol=tolerance, atol=10 * tolerance)

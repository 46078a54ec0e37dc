"""The selective scan's kernels."""

from __future__ import annotations

import pytest
import torch

from synthe_core.ops.selective_scan import selective_scan
from tests.gpu.interpreter.comparison import assert_equal, draws


def arguments(batch, time, channels, size, dtype=torch.float64, state=True):
    normal, uniform = draws(0, dtype)
    delta = uniform(batch, time, channels)
    delta[:, ::6] = 0  # padding
    return {
        "x": normal(batch, time, channels),
        "delta": delta,
        "A": -4 * uniform(channels, size),
        "B": normal(batch, time, size),
        "C": normal(batch, time, size),
        "D": normal(channels),
        "state": normal(batch, channels, size) if state else None,
    }


@pytest.mark.parametrize("sizes", [(2, 1, 5, 3), (1, 2, 33, 16), (2, 37, 40, 5)], ids=str)
@pytest.mark.parametrize("state", [True, False], ids=["started", "fresh"])
def test_outputs_and_gradients(sizes, state):
    assert_equal(selective_scan, "triton", arguments(*sizes, state=state), 1e-11)


@pytest.mark.parametrize("size", [16, 70], ids=str)
def test_float32_and_large_states(size):
    assert_equal(selective_scan, "triton", arguments(1, 19, 6, size, torch.float32), 1e-5)

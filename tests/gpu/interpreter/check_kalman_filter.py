"""The Kalman filter's kernels."""

from __future__ import annotations

import pytest
import torch

from synthe_core.ops.kalman_filter import kalman_filter
from tests.gpu.interpreter.comparison import assert_equal, draws


def arguments(shape, dtype=torch.float64, per_token=False, masked=False):
    normal, uniform = draws(0, dtype)
    batch, time, width = shape
    of_model = shape if per_token else (width,)
    return {
        "observation": normal(*shape),
        "transition": uniform(*of_model),
        "process_noise": uniform(*of_model),
        "observation_noise": uniform(*shape) + 0.01,
        "mean": normal(batch, width),
        "variance": uniform(batch, width),
        "active": uniform(batch, time) > 0.3 if masked else None,
    }


@pytest.mark.parametrize("shape", [(2, 1, 5), (1, 2, 33), (2, 71, 40)], ids=str)
@pytest.mark.parametrize("per_token", [False, True], ids=["one a channel", "one a token"])
@pytest.mark.parametrize("masked", [False, True], ids=["all active", "masked"])
def test_outputs_and_gradients(shape, per_token, masked):
    assert_equal(kalman_filter, "triton", arguments(shape, per_token=per_token, masked=masked), 1e-11)


def test_float32():
    assert_equal(kalman_filter, "triton", arguments((2, 71, 40), torch.float32, masked=True), 1e-5)


def test_a_gain_near_one_cancels_nothing():
    """Observations without noise: 1 - K is about 1e-9, and its gradients are exact."""
    given = arguments((1, 20, 3))
    given["observation_noise"] = given["observation_noise"] * 1e-9
    assert_equal(kalman_filter, "triton", given, 1e-10)

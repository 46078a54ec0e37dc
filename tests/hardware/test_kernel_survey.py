"""The survey finds every operator that learners call, and reports for each kernel what dispatch would do."""

from __future__ import annotations

import pytest
import torch

from synthe_core.hardware.kernel_survey import TIME, Survey, survey
from synthe_core.layers import LAYERS
from synthe_core.ops.dispatch import OPS, record_ops, use_kernels


@pytest.fixture(scope="module")
def surveyed() -> dict[str, Survey]:
    return {each.op: each for each in survey()}


def test_every_operator_is_there(surveyed: dict[str, Survey]) -> None:
    assert surveyed.keys() == OPS.keys()
    assert {name for each in surveyed.values() for name in each.learners} == set(LAYERS)
    assert surveyed["delta_rule"].learners == ["delta", "delta_memory", "multiscale_memory"]
    assert {"fast_weights", "mamba2"} <= {*surveyed["linear_attention"].learners}
    assert surveyed["linear_cross_entropy"].decoding is None


def test_each_call_has_one_kernel_and_reasons(surveyed: dict[str, Survey]) -> None:
    for each in surveyed.values():
        for call in (each.training, each.decoding):
            if call is None:
                continue
            assert [choice.chosen for choice in call.choices].count(True) == 1
            assert call.choices[-1].kernel == "reference"
            names = [choice.kernel for choice in call.choices]
            assert names == [*(kernel.name for kernel in OPS[each.op].kernels), "reference"]
            before = call.choices[: names.index(call.kernel)]
            assert all(choice.reason for choice in before)
        if each.training:
            assert TIME in each.training.shape[:2]
        if each.decoding:
            assert each.decoding.shape[:2] == (1, 1)


def test_the_survey_leaves_the_random_state_unchanged() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    survey()
    assert torch.rand(1) == expected


def test_calls_are_recorded_only_within_the_block() -> None:
    x = torch.ones(1, 2, 4)
    weight, targets = torch.ones(8, 4), torch.zeros(1, 2, dtype=torch.int64)
    op = OPS["linear_cross_entropy"]
    with record_ops() as recorder, use_kernels(linear_cross_entropy="reference"):
        op(x, weight, targets)
    op(x, weight, targets)
    recorded = [(each.op.name, each.call.time, each.call.grad, each.kernel) for each in recorder.calls]
    assert recorded == [("linear_cross_entropy", 2, False, "reference")]

"""Every kernel of every operator equals its reference, on the very calls that the learners make."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from synthe_core.hardware.probe import probe
from synthe_core.layers import LAYERS
from synthe_core.ops.dispatch import OPS, Call, Op
from tests.laws.entries import CASES, case_name, inputs, make, run

for _name in LAYERS:  # importing a learner imports its operators
    LAYERS[_name]


@functools.cache
def calls(time: int) -> list[tuple[str, str, dict[str, Any]]]:
    """The operator calls of every learner with a state of 5 tokens: (operator, learner, arguments)."""
    recorded: list[tuple[str, str, dict[str, Any]]] = []
    original = Op.__call__
    for case in CASES:
        learner = make(case)
        state = run(learner, inputs(2, 5, seed=9))[1]

        def recording(self: Op, *args: Any, name: str = case_name(case), **kwargs: Any) -> Any:
            named = dict(zip(self._parameters, args, strict=False)) | kwargs
            copies = {key: copied(value) if isinstance(value, Tensor) else value for key, value in named.items()}
            recorded.append((self.name, name, copies))
            return original(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Op, "__call__", recording)
            run(learner, inputs(2, time), state, start=5)
    return recorded


def copied(value: Tensor) -> Tensor:
    """A leaf of the same values that wants a gradient if the original did."""
    return value.detach().clone().requires_grad_(value.requires_grad)


def leaves(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    return [leaf for part in result if part is not None for leaf in leaves(part)]


def outcome(fn: Any, arguments: dict[str, Any]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradient of a fixed random projection of them with respect to every argument."""
    values = {key: copied(value) if isinstance(value, Tensor) else value for key, value in arguments.items()}
    outputs = leaves(fn(**values))
    torch.manual_seed(3)
    total = sum((out * torch.randn(out.shape, dtype=out.dtype)).sum() for out in outputs if out.requires_grad)
    expected = {key: value for key, value in values.items() if isinstance(value, Tensor) and value.requires_grad}
    if not expected:  # a call on constants
        return outputs, {}
    gradients = torch.autograd.grad(total, list(expected.values()), allow_unused=True)
    pairs = zip(expected, gradients, strict=True)
    return outputs, {key: torch.zeros_like(expected[key]) if g is None else g for key, g in pairs}


@pytest.mark.parametrize("time", [1, 2, 71])
def test_every_kernel_equals_the_reference(time, two_threads):
    compared = set()
    for name, label, arguments in calls(time):
        op = OPS[name]
        outputs, gradients = outcome(op.reference, arguments)
        for kernel in op.kernels:
            if kernel.refusal(probe(), Call.of(arguments)) is not None:
                continue
            actual, slopes = outcome(kernel, arguments)
            place = f"{name}/{kernel.name} for {label} at T={time}"
            for a, b in zip(actual, outputs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, place=place: f"{place}: {m}")
            for key, slope in gradients.items():
                torch.testing.assert_close(
                    slopes[key], slope, rtol=1e-7, atol=1e-8, msg=lambda m, k=key, place=place: f"{place}, d{k}: {m}"
                )
            compared.add((name, kernel.name))
    called = {name for name, _, _ in calls(time) if OPS[name].kernels}
    assert {name for name, _ in compared} == called and len(called) > 4

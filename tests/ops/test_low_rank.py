"""What adapters add to a map's outputs: each row its own adapter's, the same in any company."""

from __future__ import annotations

import pytest
import torch

from synthe_core.hardware.probe import probe
from synthe_core.ops.low_rank import NONE, SOURCE, add_low_rank, reference, suits
from synthe_core.ops.native import refusal

REASON = refusal(probe(), "cpu", SOURCE)
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
Change = tuple[torch.Tensor, torch.Tensor, float]


def change(rank: int, inputs: int, outputs: int, dtype: torch.dtype) -> Change:
    generator = torch.Generator().manual_seed(rank + inputs)
    a, b = (torch.randn(rank, size, generator=generator).to(dtype) for size in (inputs, outputs))
    return a, b.t(), 0.3 * rank


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 70), (33, 17), (64, 130)])
def test_equals_the_definition(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    changes = [change(rank, inputs, outputs, dtype) for rank in (1, 3, 8)]
    numbers = [2, NONE, 0, 1, 1]
    x, y = torch.randn(5, 2, inputs), torch.randn(5, 2, outputs)
    assert suits(y, x, [each for a, b, _ in changes for each in (a, b)])
    expected, before = reference(y, x, changes, numbers), y.clone()
    together = y.clone()
    add_low_rank(together, x, changes, numbers)
    torch.testing.assert_close(together.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(together[1], before[1])
    for row, number in enumerate(numbers):
        alone = before[row : row + 1, 1:].clone()
        add_low_rank(alone, x[row : row + 1, 1:].contiguous(), changes, [number])
        assert torch.equal(alone[0], together[row, 1:])


def test_what_it_does_not_compute() -> None:
    a, b, _ = change(3, 8, 16, torch.float32)
    x, y = torch.randn(2, 1, 8), torch.randn(2, 1, 16)
    assert suits(y, x, [a, b]) and not suits(y, x, [a, b.contiguous()])
    assert not suits(y, x, [a.double(), b.double()]) and not suits(y.bfloat16(), x, [a, b])
    assert not suits(y, x.clone().requires_grad_(), [a, b])

"""The span memory's kernels, spans ending where each row's clock has it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.span_memory import span_memory
from tests.gpu.interpreter.comparison import assert_equal, draws


def arguments(time, span, key, value, dtype=torch.float64, sharp=True, momentum=True, start=(0, 3)):
    """Two rows at different places of their first span, with padding in the second."""
    normal, uniform = draws(0, dtype)
    batch, heads = len(start), 2
    unit = lambda *shape: F.normalize(normal(*shape), dim=-1)  # noqa: E731
    positions = torch.tensor(start)[:, None] + torch.arange(time)
    weight = uniform(batch, time)
    weight[1, -3:] = 0
    tokens = (batch, time, heads)
    return {
        "query": unit(*tokens, key),
        "key": unit(*tokens, key),
        "value": unit(*tokens, value),
        "rate": normal(*tokens),
        "sharpness": uniform(heads) + 0.5 if sharp else None,
        "decay": uniform(*tokens),
        "momentum": 0.9 * uniform(*tokens) if momentum else None,
        "weight": weight,
        "finished": (positions % span == 0) & (positions > 0),
        "memory": normal(batch, heads, key, value),
        "velocity": normal(batch, heads if momentum else 0, key, value),
        "pending": normal(batch, heads, key, key + value),
        "tally": uniform(batch, heads, 3),
        "span": span,
    }


@pytest.mark.parametrize("sizes", [(1, 4, 3, 5), (19, 4, 5, 7), (41, 20, 16, 16)], ids=str)
@pytest.mark.parametrize("sharp", [True, False], ids=["surprise", "plain"])
@pytest.mark.parametrize("momentum", [True, False], ids=["momentum", "no momentum"])
def test_outputs_and_gradients(sizes, sharp, momentum):
    assert_equal(span_memory, "triton", arguments(*sizes, sharp=sharp, momentum=momentum), 1e-9)


def test_float32():
    assert_equal(span_memory, "triton", arguments(19, 4, 5, 7, torch.float32), 2e-4)

"""Our kernels of the matrix memories, which do not round."""

from __future__ import annotations

import pytest
import torch

from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.linear_attention import linear_attention
from tests.gpu.interpreter.check_fla import RULES, memory_rule
from tests.gpu.interpreter.comparison import assert_equal

EXACT = [rule for rule in RULES if rule[0].name != "mlstm"]
rules = pytest.mark.parametrize(("op", "make"), EXACT, ids=[op.name for op, _ in EXACT])


def wide(arguments, dtype):
    return {name: x.to(dtype) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


@rules
@pytest.mark.parametrize("sizes", [(2, 1, 2, 5, 7), (1, 35, 2, 5, 40)], ids=str)
def test_float64(op, make, sizes):
    assert_equal(op, "triton", wide(make(sizes), torch.float64), 1e-11)


@rules
def test_float32_and_a_fresh_memory(op, make):
    assert_equal(op, "triton", make((1, 19, 1, 16, 8), started=False), 2e-5)


@pytest.mark.parametrize("op", [delta_rule, linear_attention], ids=lambda op: op.name)
def test_no_decay(op):
    arguments = wide(memory_rule((1, 19, 2, 8, 8), decay=False), torch.float64)
    assert_equal(op, "triton", arguments, 1e-11)
    arguments["q"], arguments["k"] = arguments["q"][:, :, :1], arguments["k"][:, :, :1]  # two heads of values read one
    assert_equal(op, "triton", arguments, 1e-11)

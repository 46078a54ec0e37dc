"""What becomes of a write: known fates, and the norms of memories against the operator's own state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from synthe_core.introspection.linear_memory import linear_memory
from synthe_core.introspection.memories import fate, memory_norms, memory_series
from synthe_core.introspection.observe import MemoryCall
from synthe_core.introspection.reads import follow
from synthe_core.layers import build, parse
from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.linear_attention import linear_attention
from tests.introspection.test_linear_memory import call

SIZE = 5


def memory_call(op: Any, keys: list[int], beta: float = 1.0, decay: float = 1.0) -> MemoryCall:
    """One head that writes one-hot keys, one a token, each with a value of its own."""
    torch.manual_seed(0)
    k = torch.nn.functional.one_hot(torch.tensor(keys), SIZE).double()[None, :, None]
    v = torch.randn(1, len(keys), 1, 3).double()
    strength = torch.full((1, len(keys), 1), beta).double()
    inputs = {
        "q": k,
        "k": k,
        "v": v,
        "beta": strength,
        "log_decay": torch.full_like(strength, decay).log(),
        "state": None,
    }
    learner = build(parse({"type": "delta", "heads": 1}), 8)
    return MemoryCall("blocks.0.0", learner, op, inputs, None)


def test_an_overwritten_write_names_the_token_that_overwrote_it() -> None:
    memory = memory_call(delta_rule, [0, 1, 2, 0, 3])
    reads = follow(memory, 5)
    assert reads is not None
    lost = fate(memory, reads, 0)
    assert lost is not None
    assert (lost.left.tolist(), lost.gone.tolist(), lost.by.tolist()) == ([pytest.approx(0, abs=1e-12)], [3], [3])
    assert lost.took.tolist() == pytest.approx([1.0])
    assert lost.now[0] == 3  # what is there now was written by token 3
    assert lost.shares[0] == pytest.approx(1.0)
    intact = fate(memory, reads, 1)
    assert intact is not None
    assert (intact.left.tolist(), intact.gone.tolist(), intact.by.tolist()) == ([pytest.approx(1.0)], [-1], [-1])
    assert intact.answers.tolist() == pytest.approx([1.0])


def test_additive_memory_loses_writes_by_decay() -> None:
    memory = memory_call(linear_attention, [0, 1, 0, 2], decay=0.8)
    reads = follow(memory, 4)
    assert reads is not None
    faded = fate(memory, reads, 0)
    assert faded is not None
    assert faded.left.tolist() == pytest.approx([0.8**3])
    assert faded.gone.tolist() == [-1]
    longer = memory_call(linear_attention, [0, 1, 2, 3, 4], decay=0.8)
    reads = follow(longer, 5)
    assert reads is not None
    faded = fate(longer, reads, 0)
    assert faded is not None
    assert faded.gone.tolist() == [4]  # 0.8⁴ < ½ < 0.8³


def test_a_half_strength_overwrite_leaves_half() -> None:
    memory = memory_call(delta_rule, [0, 0], beta=0.5)
    reads = follow(memory, 2)
    assert reads is not None
    half_left = fate(memory, reads, 0)
    assert half_left is not None
    assert half_left.left.tolist() == pytest.approx([0.5])
    assert half_left.by.tolist() == [1]


def test_no_fate_without_keys_or_for_another_token() -> None:
    memory = memory_call(delta_rule, [0, 1])
    reads = follow(memory, 2)
    assert reads is not None
    assert fate(memory, reads, 2) is None


@pytest.mark.parametrize("op", ["delta_rule", "linear_attention", "kda", "generalized_delta_rule", "mlstm"])
def test_memory_norms_equal_those_of_the_state(op: str) -> None:
    from synthe_core.ops.dispatch import OPS

    inputs = call(op, 23)
    for stop in (1, 12, 23):
        cut = {
            name: value[:, :stop]
            if isinstance(value, torch.Tensor) and value.dim() > 2 and value.shape[1] == 23
            else value
            for name, value in inputs.items()
        }
        state = OPS[op].reference(**cut)[1][0]
        state = state[..., :-1] if op == "mlstm" else state
        expected = state.norm(dim=(1, 2)).numpy()
        np.testing.assert_allclose(memory_norms(linear_memory(op, inputs))[:, stop - 1], expected, rtol=1e-4)


def test_series_of_a_memory_are_named() -> None:
    memory = memory_call(delta_rule, [0, 1, 2])
    reads = follow(memory, 3)
    assert reads is not None
    series = {each.name: each for each in memory_series(memory, reads)}
    assert series.keys() == {"distance", "max_share", "written", "value", "memory_norm"}
    assert series["written"].rows.tolist() == [pytest.approx([1, 1, 1])]
    assert all(each.group == "memory" and each.rows.shape[1] == 3 for each in series.values())

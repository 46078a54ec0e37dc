"""Log-linear attention: fla's definition, the delta rule's by single writes, and what equal weights are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.layers.delta import Delta
from synthe_core.layers.learner import Pass
from synthe_core.layers.log_linear import LogLinear
from synthe_core.layers.mamba2 import Mamba2
from synthe_core.ops.dispatch import use_kernels
from synthe_core.ops.log_linear_attention import level_of, log_linear_attention
from tests.layers.mixers import wide
from tests.peers import fla_naive

WIDTH = 12
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
each_kernel = pytest.mark.parametrize("kernel", ["reference", "chunked"])
DELTA = {"type": "delta", "heads": 3}
MAMBA2 = {"type": "mamba2", "head_size": 4, "state_size": 5}


def make(**keys: Any) -> LogLinear:
    torch.manual_seed(0)
    learner = LogLinear(LogLinear.Config.model_validate(keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


def problem(time: int, levels: int, rows: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(time)
    q, k, v = (torch.randn(rows, time, 3, size, dtype=torch.float64) for size in (5, 5, 4))
    beta, log_decay = torch.rand(2, rows, time, 3, dtype=torch.float64)
    weights = torch.rand(rows, time, 3, levels, dtype=torch.float64)
    return q, F.normalize(k, dim=-1), v, beta, -0.2 * log_decay, weights


def from_nothing(inputs: tuple[Tensor, ...], overwrite: bool) -> Tensor:
    q, v, weights = inputs[0], inputs[2], inputs[5]
    positions = torch.arange(-1, q.shape[1]).expand(len(q), -1)
    state = q.new_zeros(len(q), v.shape[2], weights.shape[-1], q.shape[-1], v.shape[-1])
    return log_linear_attention(*inputs, positions, state, overwrite)[0]


@each_kernel
@pytest.mark.parametrize("time", [1, 8, 67])
def test_equals_flas_definition(kernel: str, time: int) -> None:
    naive = fla_naive("ops/log_linear_attn/naive.py").naive_log_linear_attn
    levels = 1 + max(time - 1, 1).bit_length()
    inputs = problem(time, levels)
    q, k, v, beta, log_decay, weights = inputs
    with wide():
        expected = naive(q, k, beta[..., None] * v, log_decay, weights, scale=1.0)
    with use_kernels(log_linear_attention=kernel):
        torch.testing.assert_close(from_nothing(inputs, False), expected, **CLOSE)


@each_kernel
@pytest.mark.parametrize("levels", [3, 9])
def test_every_level_passes_the_delta_rule_and_is_weighed_by_age(kernel: str, levels: int) -> None:
    inputs, time = problem(71, levels), 71
    q, k, v, beta, log_decay, weights = inputs
    expected = torch.zeros_like(v)
    for s in range(time):  # what one write alone becomes
        memory = beta[:, s, :, None, None] * k[:, s, :, :, None] * v[:, s, :, None]
        for t in range(s, time):
            if t > s:
                memory = log_decay[:, t, :, None, None].exp() * memory
                recalled = torch.einsum("bhk,bhkv->bhv", k[:, t], memory)
                memory = memory - beta[:, t, :, None, None] * k[:, t, :, :, None] * recalled[:, :, None]
            level = min((t ^ s).bit_length(), levels - 1)
            read = torch.einsum("bhk,bhkv->bhv", q[:, t], memory)
            expected[:, t] += weights[:, t, :, level, None] * read
    with use_kernels(log_linear_attention=kernel):
        torch.testing.assert_close(from_nothing(inputs, True), expected, **CLOSE)


@pytest.mark.parametrize("over", [DELTA, MAMBA2, DELTA | {"overwrite": False, "decay": False}], ids=str)
def test_with_equal_weights_it_is_what_it_is_over(over: dict[str, Any]) -> None:
    learner, x = make(over=over, levels=5), torch.randn(2, 70, WIDTH, dtype=torch.float64)
    plain: Any = Delta(learner.config.over, WIDTH) if over["type"] == "delta" else Mamba2(learner.config.over, WIDTH)
    plain.double().load_state_dict(learner.over.state_dict())
    with torch.no_grad():  # softplus(log(e - 1)) = 1
        learner.level.weight.copy_(torch.eye(1, WIDTH).expand(len(learner.level.weight), -1))
        learner.L.fill_(torch.tensor(1.0, dtype=torch.float64).expm1().log())
        x[..., 0] = 1
        y, state = learner(x, None, Pass.over(x))
        expected, memory = plain(x, None, Pass.over(x))
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(state[0].sum(2), memory[0], **CLOSE)


def test_levels_are_the_blocks_of_a_fenwick_tree() -> None:
    blocks = [[int(level_of(torch.tensor(t), torch.tensor(s), 5)) for s in range(t + 1)] for t in (0, 6, 13)]
    assert blocks == [[0], [3, 3, 3, 3, 2, 2, 0], [4] * 8 + [3] * 4 + [1, 0]]
    assert int(level_of(torch.tensor(0), torch.tensor(-1), 5)) == 4
    assert int(level_of(torch.tensor(2**40), torch.tensor(2**40 - 1), 5)) == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"over": DELTA | {"householder": 2}}, "one step a token"),
        ({"over": DELTA | {"residual": {"norm": "post"}}}, "residual of `over`"),
        ({"over": {"type": "delta", "heads": 5}}, "not divisible by heads 5"),
    ],
)
def test_bad_settings_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**keys)


def test_a_name_is_enough() -> None:
    assert LogLinear.Config.model_validate({"over": "mamba2"}).over == Mamba2.Config()

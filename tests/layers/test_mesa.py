"""Mesa: fla's exact recurrence, its equation from any state, and the regression that it solves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.mesa import Mesa, MesaState
from synthe_core.ops.dispatch import use_kernels
from tests.layers.mixers import wide
from tests.peers import fla_naive

WIDTH = 12
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
each_kernel = pytest.mark.parametrize("kernel", ["reference", "conjugate-gradient"])


def make(**keys: Any) -> Mesa:
    torch.manual_seed(0)
    learner = Mesa(Mesa.Config(**keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-5).sqrt()


def state_of(learner: Mesa, batch: int) -> MesaState:
    """A random one: A is symmetric, with no negative eigenvalue."""
    zeros = learner.init_state(batch)
    root = torch.randn_like(zeros.keys)
    return MesaState(root @ root.transpose(-1, -2), torch.randn_like(zeros.values), torch.randn_like(zeros.conv))


@pytest.fixture
def default_float64() -> Iterator[None]:
    """fla's recurrence stores the memories of all tokens in torch's default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@each_kernel
def test_equals_the_equations_of_flas_layer(kernel: str, default_float64: None) -> None:
    naive = fla_naive("ops/mesa_net/naive.py").naive_mesa_net_exact
    learner, x = make(heads=3, conv=0), torch.randn(2, 71, WIDTH, dtype=torch.float64)
    state = state_of(learner, 2)
    with torch.no_grad():
        mixed, v, b, a, _ = learner.project(x).split(learner.features, -1)
        q, k = (unit(part) for part in mixed.unflatten(-1, (2, 3, 4)).unbind(2))
        ridge = (0.25 + F.softplus(learner.ridge)).view(3, 4)
        beta, g = (b + learner.beta_bias).sigmoid(), F.logsigmoid(a + learner.decay_bias)
        with wide():
            o, keys, values = naive(q, k, v.unflatten(-1, (3, 4)), g, ridge, beta, state.keys, state.values)
        expected = learner.out(F.rms_norm(o, (4,), learner.norm, 1e-5).flatten(2))
        with use_kernels(mesa=kernel):
            y, after = learner(x, state, Pass.over(x))
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(after.keys, keys, **CLOSE)
    torch.testing.assert_close(after.values, values, **CLOSE)


@each_kernel
def test_is_the_equation_of_its_docstring_from_any_state(kernel: str) -> None:
    learner = make(heads=1, key_size=3, value_size=4, conv=3, conv_bias=True, gate=True)
    x, state = torch.randn(1, 6, WIDTH, dtype=torch.float64), state_of(learner, 1)
    with use_kernels(mesa=kernel):
        y, after = learner(x, state, Pass.over(x))
    mixed, v, b, a, gate = (part[0] for part in learner.project(x).split(learner.features, -1))
    past, A, C = torch.cat([state.conv[0], mixed]), state.keys[0, 0], state.values[0, 0]
    assert learner.conv1d is not None and learner.conv1d.bias is not None
    ridge = torch.diag(0.25 + F.softplus(learner.ridge))
    for t in range(6):
        taps = (learner.conv1d.weight[:, 0].T * past[t : t + 3]).sum(0) + learner.conv1d.bias
        q, k = (unit(part) for part in F.silu(taps).split(3))
        beta, alpha = (b[t] + learner.beta_bias).sigmoid(), (a[t] + learner.decay_bias).sigmoid()
        A, C = alpha * A + beta * torch.outer(k, k), alpha * C + beta * torch.outer(k, v[t])
        o = F.rms_norm(C.T @ torch.linalg.inv(A + ridge) @ q, (4,), learner.norm, 1e-5)
        torch.testing.assert_close(y[0, t], learner.out(o * F.silu(gate[t])), **CLOSE)
    torch.testing.assert_close(after.keys[0, 0], A, **CLOSE)
    torch.testing.assert_close(after.values[0, 0], C, **CLOSE)


def test_lambda_begins_at_one() -> None:
    learner = Mesa(Mesa.Config(heads=2, ridge_min=0.4), WIDTH)
    torch.testing.assert_close(0.4 + F.softplus(learner.ridge.detach()), torch.ones(12))


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match="not divisible by heads 5"):
        make(heads=5)

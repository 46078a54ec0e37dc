"""KDA beside transformers' Kimi-Linear layer with the same weights, and beside fla's naive recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.layers.kda import KDA
from synthe_core.layers.learner import Pass
from tests.layers.mixers import CLOSE, wide
from tests.peers import fla_naive

WIDTH = 12


def make(**keys: Any) -> KDA:
    torch.manual_seed(0)
    learner = KDA(KDA.Config(**keys), WIDTH).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


def kimi(heads: int, size: int, conv: int) -> tuple[KDA, Any, Any]:
    """The layer of Kimi-Linear and ours with its weights: their queries are divided by √size, which the norm undoes."""
    models = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    config = models.KimiLinearConfig(
        hidden_size=WIDTH,
        linear_num_heads=heads,
        linear_head_dim=size,
        linear_conv_kernel_dim=conv,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        rms_norm_eps=1e-3,
    )
    learner = make(heads=heads, key_size=size, value_size=size, conv=conv, gate_bias=False, norm_eps=1e-3 * size,
                   key_norm_eps=1e-6)  # fmt: skip
    module = models.KimiLinearDeltaAttention(config, 0).double().eval()
    module.load_state_dict(published(dict(learner.state_dict()), heads * size, size, heads), strict=True)
    return learner, module, config


def published(tensors: dict[str, torch.Tensor], channels: int, size: int, heads: int) -> dict[str, torch.Tensor]:
    q, k, v, low_decay, low_gate, beta = tensors["project.weight"].split([channels] * 3 + [size, size, heads])
    return {
        "q_proj.weight": q,
        "k_proj.weight": k,
        "v_proj.weight": v,
        "conv1d.weight": tensors["conv1d.weight"],
        "forget_gate.f_a_proj.weight": low_decay,
        "forget_gate.f_b_proj.weight": tensors["decay.weight"],
        "forget_gate.dt_bias": tensors["dt_bias"],
        "forget_gate.A_log": tensors["A_log"].view(1, 1, -1, 1),
        "b_proj.weight": beta,
        "g_a_proj.weight": low_gate,
        "g_b_proj.weight": tensors["gate.weight"],
        "o_norm.weight": tensors["norm"],
        "o_proj.weight": tensors["out.weight"],
    }


@pytest.mark.parametrize(("heads", "size", "conv"), [(2, 6, 4), (3, 5, 2), (1, 7, 3)])
@pytest.mark.parametrize("time", [1, 2, 70])
def test_equals_kimi_linear_in_outputs_and_every_gradient(heads: int, size: int, conv: int, time: int) -> None:
    learner, module, _ = kimi(heads, size, conv)
    torch.manual_seed(1)
    x, slope = torch.randn(2, 2, time, WIDTH, dtype=torch.float64).unbind()
    results = []
    for own in (learner, module):
        given = x.clone().requires_grad_()
        with wide():
            y = learner(given, None, Pass.over(x))[0] if own is learner else module(given)
        (y * slope).sum().backward()
        gradients = {name: parameter.grad for name, parameter in own.named_parameters()}
        results.append({"y": y.detach(), "x": given.grad} | gradients)
    ours = published(results[0], heads * size, size, heads) | {name: results[0][name] for name in "xy"}
    for name, value in ours.items():
        torch.testing.assert_close(
            value, results[1][name], rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_decodes_as_kimi_linear_does() -> None:
    cache_utils = pytest.importorskip("transformers.cache_utils")
    learner, module, config = kimi(2, 6, 4)
    cache, state = cache_utils.DynamicCache(config=config), None
    x = torch.randn(2, 16, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        for start, end in [(0, 11), *((t, t + 1) for t in range(11, 16))]:
            with wide():
                expected = module(x[:, start:end], cache_params=cache)
            y, state = learner(x[:, start:end], state, Pass.over(x[:, start:end], start=torch.full((2,), start)))
            torch.testing.assert_close(y, expected, **CLOSE)


@pytest.mark.parametrize(
    "keys",
    [
        {"heads": 2, "value_heads": 4, "key_size": 6, "value_size": 3, "conv": 0, "beta_range": (0.0, 2.0)},
        {"heads": 1, "value_heads": 3, "key_size": 5, "value_size": 4, "conv": 3, "conv_bias": True}
        | {"decay_floor": -5.0},
    ],
    ids=str,
)
def test_equals_the_equations_of_flas_layer(keys: dict[str, Any]) -> None:
    """fla's layer around its naive recurrence: shared queries and keys, β up to 2, a floor of the decays."""
    naive = fla_naive("ops/kda/naive.py").naive_recurrent_kda
    learner, config = make(**keys), KDA.Config(**keys)
    heads, groups, key, value = config.heads, config.value_heads or 1, learner.key, learner.value
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        mixed, low_decay, low_gate, beta = learner.project(x).split(learner.features, -1)
        if learner.conv1d is not None:
            padded = F.pad(mixed.mT, (config.conv - 1, 0))
            mixed = F.conv1d(padded, learner.conv1d.weight, learner.conv1d.bias, groups=mixed.shape[-1]).mT
        q, k, v = F.silu(mixed).split([heads * key, heads * key, groups * value], -1)
        q, k = (part.unflatten(-1, (heads, key)) for part in (q, k))
        q, k = (part / (part.square().sum(-1, keepdim=True) + config.key_norm_eps).sqrt() for part in (q, k))
        f = (learner.decay(low_decay) + learner.dt_bias).unflatten(-1, (groups, key))
        A = learner.A_log.exp()[:, None]
        g = -A * F.softplus(f) if config.decay_floor is None else config.decay_floor * torch.sigmoid(A * f)
        with wide():
            beta = beta.sigmoid() * config.beta_range[1]
            o, _ = naive(q, k, v.unflatten(-1, (groups, value)), g, beta, scale=1.0)
        o = F.rms_norm(o, (value,), learner.norm, config.norm_eps)
        gate = learner.gate(low_gate) + learner.gate_bias
        expected = learner.out(o.flatten(2) * gate.sigmoid())
        torch.testing.assert_close(learner(x, None, Pass.over(x))[0], expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"heads": 4, "value_heads": 6}, "value_heads 6 is not a multiple of heads 4"),
        ({"heads": 2, "beta_range": (0.0, 3.0)}, "beta_range must rise within"),
    ],
    ids=str,
)
def test_bad_settings_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**keys)

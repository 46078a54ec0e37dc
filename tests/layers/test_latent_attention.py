"""Latent attention: equal to transformers' modules with the same weights, expanded or not, and what its keys do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.layers import build, parse
from synthe_core.layers.latent_attention import LatentAttention
from synthe_core.layers.learner import Pass
from tests.layers.mixers import wide

WIDTH = 24
SIZES = {"heads": 3, "rank": 10, "key_size": 6, "value_size": 5, "rope_size": 4}
YARN = {"type": "yarn", "factor": 4.0, "context": 16, "fast": 8.0, "attention_factor": 0.9}
PEERS = [
    ("deepseek_v3", {"q_rank": 8, "interleaved": True, "bias": True, "norm_eps": 1e-6}),
    ("deepseek_v3", {"interleaved": False, "rope": 500.0, "norm_eps": 1e-6}),
    ("deepseek_v3", {"interleaved": True, "rope_scaling": YARN, "value_size": 14, "norm_eps": 1e-6}),
    ("deepseek_v2", {"q_rank": 7, "interleaved": True, "norm_eps": 1e-6}),
    ("kimi_linear", {"rope": None, "bias": True, "q_rank": 9, "norm_eps": 1e-6}),
    ("kimi_linear", {"rope": None, "rank": 3, "norm_eps": 1e-6}),
]
each_peer = pytest.mark.parametrize(("kind", "keys"), PEERS, ids=str)


def make(width: int = WIDTH, **keys: Any) -> LatentAttention:
    torch.manual_seed(0)
    learner = build(parse({"type": "latent_attention", **SIZES, **keys}), width).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return learner


def peer(kind: str, keys: dict[str, Any]) -> tuple[LatentAttention, Any, Any]:
    """Our learner, transformers' module with its weights and what gives that its positions."""
    models = pytest.importorskip(f"transformers.models.{kind}.modeling_{kind}")
    name = {"deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3", "kimi_linear": "KimiLinear"}[kind]
    keys = SIZES | keys
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.get("rope") or 1e4}
    if keys.get("rope_scaling"):
        rope |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0}
        rope |= {"attention_factor": 0.9, "mscale_all_dim": 0.7}
    config = getattr(models, f"{name}Config")(
        hidden_size=WIDTH,
        num_attention_heads=keys["heads"],
        num_key_value_heads=keys["heads"],
        kv_lora_rank=keys["rank"],
        q_lora_rank=keys.get("q_rank"),
        qk_nope_head_dim=keys["key_size"],
        qk_rope_head_dim=keys["rope_size"],
        v_head_dim=keys["value_size"],
        attention_bias=keys.get("bias", False),
        rope_parameters=rope,
        num_hidden_layers=1,
        **({"rope_interleave": keys["interleaved"]} if kind == "deepseek_v3" else {}),
    )
    config._attn_implementation = "eager"
    torch.manual_seed(1)
    module = getattr(models, f"{name}Attention")(config, 0).double().eval()
    angles = None if kind == "kimi_linear" else getattr(models, f"{name}RotaryEmbedding")(config).double()
    if keys.get("rope_scaling"):
        keys = keys | {"scale": module.scaling}
        assert module.scaling > 10**-0.5
    learner = make(**keys)
    with torch.no_grad():
        for ours, parameter in learner.named_parameters():
            module.get_parameter(published(ours, keys)).copy_(parameter)
    return learner, module, angles


def published(name: str, keys: dict[str, Any]) -> str:
    """The name in transformers' module of a parameter of ours."""
    direct = {"q_norm": "q_a_layernorm.weight", "kv_norm": "kv_a_layernorm.weight"}
    if name in direct:
        return direct[name]
    maps = {"q_down": "q_a_proj", "kv_down": "kv_a_proj_with_mqa", "kv": "kv_b_proj", "out": "o_proj"}
    maps["q"] = "q_b_proj" if "q_rank" in keys else "q_proj"
    module, _, kind = name.partition(".")
    return f"{maps[module]}.{kind}"


def by_transformers(module: Any, angles: Any, x: torch.Tensor) -> torch.Tensor:
    time = x.shape[1]
    mask = torch.full((time, time), -torch.inf, dtype=x.dtype).triu(1)[None, None]
    more = {}
    if angles is not None:
        more["position_embeddings"] = angles(x, torch.arange(time)[None])
    with wide():
        return module(hidden_states=x, attention_mask=mask, **more)[0]


@each_peer
@pytest.mark.parametrize("time", [1, 2, 37])
def test_equals_transformers_in_outputs_and_every_gradient(kind: str, keys: dict[str, Any], time: int) -> None:
    learner, module, angles = peer(kind, keys)
    torch.manual_seed(2)
    x, slope = torch.randn(2, 2, time, WIDTH, dtype=torch.float64).unbind()
    calls = (lambda x: learner(x, None, Pass.over(x))[0]), (lambda x: by_transformers(module, angles, x))
    results = []
    for call, own in zip(calls, (learner, module), strict=True):
        given = x.clone().requires_grad_()
        y = call(given)
        (y * slope).sum().backward()
        results.append({"y": y.detach(), "x": given.grad} | {name: p.grad for name, p in own.named_parameters()})
    ours, theirs = results
    for name, value in ours.items():
        expected = theirs[name if name in "xy" else published(name, keys)]
        # Their angles are float32, ours float64.
        close = {"rtol": 1e-5, "atol": 1e-12 + 1e-5 * float(expected.abs().max())}
        torch.testing.assert_close(value, expected, **close, msg=lambda text, name=name: f"{name}: {text}")


@each_peer
def test_a_pass_of_few_tokens_reads_latents_and_equals_expanded_keys(
    kind: str, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, module, angles = peer(kind, keys)
    torch.manual_seed(3)
    x = torch.randn(2, 24, WIDTH, dtype=torch.float64)
    calls: list[tuple[int, ...]] = []
    original = LatentAttention._read_latents
    monkeypatch.setattr(
        LatentAttention, "_read_latents", lambda self, q, *rest: calls.append(q.shape) or original(self, q, *rest)
    )
    state, pieces = None, []
    with torch.no_grad():
        for start, end in [(0, 15), *((t, t + 1) for t in range(15, 22)), (22, 24)]:
            ctx = Pass.over(x[:, start:end], start=torch.full((2,), start))
            y, state = learner(x[:, start:end], state, ctx)
            pieces.append(y)
        expected = by_transformers(module, angles, x)
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert sum(shape[1] == 1 for shape in calls) == 7
    assert state is not None and state.latents.shape == (2, 24, learner.rank + learner.shared)


def test_both_ways_have_the_same_gradients() -> None:
    learner = make(rank=64, interleaved=True)
    torch.manual_seed(4)
    x, slope = torch.randn(2, 2, 5, WIDTH, dtype=torch.float64).unbind()
    gradients = []
    for absorbs in (True, False):
        learner._absorbs = lambda time, choice=absorbs: choice  # type: ignore[method-assign]
        parameters = list(learner.parameters())
        y = learner(x, None, Pass.over(x))[0]
        gradients.append(torch.autograd.grad((y * slope).sum(), parameters))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_the_cheaper_way_is_chosen() -> None:
    deepseek = make(width=64, heads=2, rank=512, key_size=128, value_size=128, rope_size=64)
    assert deepseek._absorbs(1) and deepseek._absorbs(170) and not deepseek._absorbs(171)
    assert make(rank=2)._absorbs(1)


def test_the_state_is_smaller_than_keys_and_values() -> None:
    learner = make(width=512, heads=8, rank=None, key_size=None, value_size=None, rope_size=None)
    assert (learner.key, learner.value, learner.rank, learner.shared) == (64, 64, 256, 32)
    attention = build(parse({"type": "attention", "heads": 8}), 512).double()
    assert attention.state_bytes(1000) / learner.state_bytes(1000) > 3.5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"key_size": None, "heads": 5}, "width 24 is not divisible by heads 5"),
        ({"rope_size": 3}, "even rope_size, not 3"),
        ({"rope": None, "rope_scaling": {"type": "linear", "factor": 2}}, "rope is null"),
        ({"window": 0}, "window must be at least 1"),
    ],
    ids=str,
)
def test_bad_settings_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**keys)

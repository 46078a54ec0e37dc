"""OLMo-Hybrid: Gated DeltaNet behind norms, and in some layers attention before them."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    layer_places,
    mlp_keys,
    mlp_tensors,
    transformer_plan,
)
from synthe_core.interop.huggingface.families.fla import KEY_EPS, flat_taps
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.rotary import rotary
from synthe_core.interop.huggingface.published import Config

LINEAR, FULL = "linear_attention", "full_attention"
OUTPUT_EPS = 1e-5
AFTER = {"residual": {"norm": "post"}}


def olmo_hybrid(config: Config) -> Plan:
    config.only("hidden_act", "silu", "swish")
    bias = "all" if config.flag("attention_bias", False) else "none"
    eps = config.number("rms_norm_eps", 1e-6)
    attention = attention_keys(config, bias=bias, **_positions(config)) | {"qk_norm": "joint", "norm_eps": eps, **AFTER}
    delta, mlp = _delta(config), mlp_keys(config)
    layers = []
    kinds = _kinds(config)
    for index, place in layer_places(config):
        feeding = mlp_tensors(f"{place}.mlp", mlp)
        if kinds[index] == LINEAR:
            before = _either(f"{place}.input_layernorm", f"{place}.attention_layer_norm")
            second = _either(f"{place}.post_attention_layernorm", f"{place}.feedforward_layer_norm")
            mixing = Part(delta, before, _delta_tensors(f"{place}.linear_attn"))
            layers.append([mixing, Part(mlp, second, feeding)])
        else:  # transformers saves the first of these norms under the name of another
            first = _either(f"{place}.post_attention_layernorm", f"{place}.feedforward_layer_norm")
            mixing = Part(attention, {}, attention_tensors(f"{place}.self_attn", attention), first)
            layers.append([mixing, Part(mlp | AFTER, {}, feeding, norm(f"{place}.post_feedforward_layernorm"))])
    return transformer_plan(config, layers, eps=eps)


def _positions(config: Config) -> dict[str, Any]:
    """Rotary positions, but for a base of null: the released models have none."""
    given = config.values.get("rope_parameters") or config.values.get("rope_scaling") or {}
    theta = given.get("rope_theta", config.values.get("rope_theta", 10_000.0))
    return {"rope": None} if theta is None else rotary(config)


def _delta(config: Config) -> dict[str, Any]:
    heads = config.size("linear_num_key_heads", config.size("num_attention_heads"))
    key = config.size("linear_key_head_dim", int(0.75 * config.size("hidden_size") / heads))
    return {
        "type": "delta",
        "heads": heads,
        "value_heads": config.size("linear_num_value_heads", config.size("num_attention_heads")),
        "key_size": key,
        "value_size": config.size("linear_value_head_dim", 2 * key),
        "conv": config.size("linear_conv_kernel_dim", 4, least=2),
        "beta_range": [0.0, 2.0 if config.flag("linear_allow_neg_eigval", True) else 1.0],
        "query_scale": key**-0.5,
        "norm_eps": OUTPUT_EPS,
        "key_norm_eps": KEY_EPS,
    }


def _delta_tensors(place: str) -> dict[str, Origin]:
    tensors = linear("project", *(f"{place}.{name}_proj" for name in "qkvgba")) | linear("out", f"{place}.o_proj")
    tensors["conv"] = origin(*(f"{place}.{name}_conv1d.weight" for name in "qkv"), make=flat_taps)
    tensors["norm"] = origin(f"{place}.o_norm.weight")
    return tensors | {name: origin(f"{place}.{name}") for name in ("A_log", "dt_bias")}


def _either(name: str, other: str) -> dict[str, Origin]:
    return {key: each._replace(otherwise=norm(other)[key]) for key, each in norm(name).items()}


def _kinds(config: Config) -> list[str]:
    count = config.size("num_hidden_layers")
    kinds = [FULL if index % 4 == 3 else LINEAR for index in range(count)]
    if FULL not in kinds:
        kinds[-1] = FULL
    kinds = config.items("layer_types", kinds, count)
    for kind in kinds:
        if kind not in (LINEAR, FULL):
            raise config.unsupported("layer_types", kind, (LINEAR, FULL))
    return kinds


ARCHITECTURES: Architectures = {
    "OlmoHybridForCausalLM": olmo_hybrid,
}

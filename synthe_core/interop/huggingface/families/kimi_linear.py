"""Kimi-Linear: Kimi delta attention, latent attention without positions in some layers, and experts."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.huggingface.families.decoder import layer_places, mlp_keys, mlp_tensors, transformer_plan
from synthe_core.interop.huggingface.families.deepseek import LATENT_EPS, latent_tensors
from synthe_core.interop.huggingface.families.mixture import expert_tensors
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.published import Config

LINEAR, FULL = "linear_attention", "full_attention"
KEY_EPS = 1e-6


def kimi_linear(config: Config) -> Plan:
    config.only("hidden_act", "silu", "swish")
    for key, value in {"mla_use_nope": True, "moe_layer_freq": 1, "moe_router_activation_func": "sigmoid"}.items():
        config.only(key, value)
    eps = config.number("rms_norm_eps", 1e-5)
    mixers = {LINEAR: _kda(config, eps), FULL: _latent_attention(config)}
    dense, sparse = mlp_keys(config), _experts(config)
    layers = []
    kinds, feeds = _kinds(config), _feeds(config)
    for index, place in layer_places(config):
        inner = f"{place}.self_attn"
        tensors = _kda_tensors(inner) if kinds[index] == LINEAR else latent_tensors(inner, mixers[FULL])
        if feeds[index] == "dense":
            feeding, own = dense, _dense_tensors(place)
        else:
            feeding, own = sparse, _experts_tensors(f"{place}.block_sparse_moe", sparse["experts"])
        layers.append(
            [
                Part(mixers[kinds[index]], norm(f"{place}.input_layernorm"), tensors),
                Part(feeding, norm(f"{place}.post_attention_layernorm"), own),
            ]
        )
    return transformer_plan(config, layers, eps=eps, context=None)


def _kda(config: Config, eps: float) -> dict[str, Any]:
    given = config.inner("linear_attn_config")
    heads = given.size("num_heads", config.get("linear_num_heads", 32))
    size = given.size("head_dim", config.get("linear_head_dim", 128))
    return {
        "type": "kda",
        "heads": heads,
        "key_size": size,
        "value_size": size,
        "rank": size,
        "conv": given.size("short_conv_kernel_size", config.get("linear_conv_kernel_dim", 4)),
        "gate_bias": False,
        "norm_eps": eps * size,  # of outputs that are not divided by √K
        "key_norm_eps": KEY_EPS,
    }


def _kda_tensors(place: str) -> dict[str, Origin]:
    names = [*(f"{name}_proj" for name in "qkv"), "f_a_proj", "g_a_proj", "b_proj"]
    tensors = linear("project", *(f"{place}.{name}" for name in names)) | linear("out", f"{place}.o_proj")
    tensors |= linear("decay", f"{place}.f_b_proj") | linear("gate", f"{place}.g_b_proj")
    tensors["conv1d.weight"] = origin(*(f"{place}.{name}_conv1d.weight" for name in "qkv"))
    tensors |= {"norm": origin(f"{place}.o_norm.weight"), "dt_bias": origin(f"{place}.dt_bias")}
    return tensors | {"A_log": origin(f"{place}.A_log", make=lambda rates: rates.flatten())}


def _latent_attention(config: Config) -> dict[str, Any]:
    heads = config.size("num_attention_heads", 32)
    config.only("num_key_value_heads", heads)
    return {
        "type": "latent_attention",
        "heads": heads,
        "rank": config.size("kv_lora_rank", 512),
        "q_rank": None if config.get("q_lora_rank") is None else config.size("q_lora_rank"),
        "key_size": config.size("qk_nope_head_dim", 128),
        "rope_size": config.size("qk_rope_head_dim", 64, least=0),
        "value_size": config.size("v_head_dim", 128),
        "rope": None,
        "norm_eps": LATENT_EPS,
        "bias": config.flag("attention_bias", False),
    }


def _experts(config: Config) -> dict[str, Any]:
    """The experts; keys have the checkpoint's names, or those of transformers."""
    number = config.size("num_experts", config.get("num_local_experts", 256), least=2)
    hidden = config.size("moe_intermediate_size", 1024)
    return {
        "type": "experts",
        "experts": number,
        "top_k": config.size("num_experts_per_token", config.get("num_experts_per_tok", 8)),
        "hidden": hidden,
        "scores": "sigmoid",
        "normalize": config.flag("moe_renormalize", config.flag("norm_topk_prob", True)),
        "weight_scale": config.number("routed_scaling_factor", 2.446),
        "groups": config.size("num_expert_group", config.get("n_group", 1)),
        "top_groups": config.size("topk_group", 1),
        "bias_rate": 0.0,
        "balance": 0.0,
        "shared": hidden * config.size("num_shared_experts", config.get("n_shared_experts", 1)),
    }


def _experts_tensors(place: str, count: int) -> dict[str, Origin]:
    tensors = linear("router", f"{place}.gate") | expert_tensors(f"{place}.experts", count, ("w1", "w3"), "w2")
    tensors["pool.routing.bias"] = origin(f"{place}.gate.e_score_correction_bias")
    shared = mlp_tensors(f"{place}.shared_experts", {})
    return tensors | {f"pool.shared.{name}": each for name, each in shared.items()}


def _dense_tensors(place: str) -> dict[str, Origin]:
    """An MLP's, which transformers saves under the name of the experts."""
    own, other = (mlp_tensors(f"{place}.{name}", {}) for name in ("mlp", "block_sparse_moe"))
    return {name: each._replace(otherwise=other[name]) for name, each in own.items()}


def _kinds(config: Config) -> list[str]:
    """The mixer of every layer: `layer_types`, or by lists of layers that are counted from 1."""
    count = config.size("num_hidden_layers")
    given = config.inner("linear_attn_config")
    kinds = [FULL if index and index % 4 == 0 else LINEAR for index in range(count)]
    if config.get("layer_types") is None and given.get("full_attn_layers") is not None:
        attending = given.items("full_attn_layers")
        kinds = [FULL if index + 1 in attending else LINEAR for index in range(count)]
        for index in given.items("kda_layers"):
            if index in attending or not isinstance(index, int) or not 1 <= index <= count:
                raise given.unsupported("kda_layers", index, ["the layers that are not in full_attn_layers"])
    kinds = config.items("layer_types", kinds, count)
    for kind in kinds:
        if kind not in (LINEAR, FULL):
            raise config.unsupported("layer_types", kind, (LINEAR, FULL))
    return kinds


def _feeds(config: Config) -> list[str]:
    count, first = config.size("num_hidden_layers"), config.size("first_k_dense_replace", 1, least=0)
    feeds = config.items("mlp_layer_types", ["dense" if index < first else "sparse" for index in range(count)], count)
    for feed in feeds:
        if feed not in ("dense", "sparse"):
            raise config.unsupported("mlp_layer_types", feed, ("dense", "sparse"))
    return feeds


ARCHITECTURES: Architectures = {
    "KimiLinearForCausalLM": kimi_linear,
}

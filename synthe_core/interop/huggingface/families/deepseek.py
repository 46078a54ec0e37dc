"""DeepSeek-V3 and GLM-4.5: experts chosen by sigmoid scores within groups and one for every token, behind layers with
an MLP; DeepSeek's attention keeps latents, GLM's keys and values."""

from __future__ import annotations

import math
import re
from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    layer_places,
    mlp_keys,
    mlp_tensors,
    transformer_plan,
)
from synthe_core.interop.huggingface.families.experts import expert_tensors, number_of_experts
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.rotary import parameters, rotary
from synthe_core.interop.huggingface.published import Config

LATENT_EPS = 1e-6  # of the norms of latents, which no config says


def deepseek_v3(config: Config) -> Plan:
    keys = _latent_keys(config)
    layers = []
    for index, place in layer_places(config):
        mixing = Part(keys, norm(f"{place}.input_layernorm"), latent_tensors(f"{place}.self_attn", keys))
        layers.append([mixing, _feeding(config, index, place, first=3, shared=1)])
    return transformer_plan(config, layers, ignored=_further_layers(config))


def glm4_moe(config: Config) -> Plan:
    eps = config.number("rms_norm_eps", 1e-5)
    bias = "qkv" if config.flag("attention_bias", False) else "none"
    keys = attention_keys(config, groups=8, bias=bias)
    keys |= {"qk_norm": "weighted", "norm_eps": eps} if config.flag("use_qk_norm", False) else {}
    keys |= rotary(config, keys["head_size"], share=0.5)
    layers = []
    for index, place in layer_places(config):
        mixing = Part(keys, norm(f"{place}.input_layernorm"), attention_tensors(f"{place}.self_attn", keys))
        layers.append([mixing, _feeding(config, index, place, first=1, shared=1)])
    return transformer_plan(config, layers, eps=eps, ignored=_further_layers(config))


def _further_layers(config: Config) -> str | None:
    """The names of layers behind the model's own, which predict several tokens at once."""
    count = config.size("num_hidden_layers")
    more = config.size("num_mtp_layers", config.get("num_nextn_predict_layers", 1), least=0)
    names = "|".join(re.escape(f"model.layers.{index}.") for index in range(count, count + more))
    return f"^(?:{names})" if more else None


def _latent_keys(config: Config) -> dict[str, Any]:
    config.only("num_key_value_heads", config.size("num_attention_heads"))
    key, shared = config.size("qk_nope_head_dim", 128), config.size("qk_rope_head_dim", 64)
    return {
        "type": "latent_attention",
        "heads": config.size("num_attention_heads"),
        "rank": config.size("kv_lora_rank", 512),
        "q_rank": None if config.values.get("q_lora_rank", 1536) is None else config.size("q_lora_rank", 1536),
        "key_size": key,
        "value_size": config.size("v_head_dim", 128),
        "rope_size": shared,
        "interleaved": config.flag("rope_interleave", True),
        "scale": (key + shared) ** -0.5 * _scale_of_scores(parameters(config)),
        "norm_eps": LATENT_EPS,
        "bias": config.flag("attention_bias", False),
        **rotary(config),
    }


def _scale_of_scores(given: Config) -> float:
    """What stretched positions multiply scores by."""
    if given.get("rope_type", given.get("type", "default")) == "default" or not given.get("mscale_all_dim"):
        return 1.0
    return (0.1 * given.number("mscale_all_dim") * math.log(max(given.number("factor"), 1.0)) + 1) ** 2


def latent_tensors(inner: str, keys: dict[str, Any]) -> dict[str, Origin]:
    """The tensors of `latent_attention`."""
    bias = keys["bias"]
    tensors = linear("kv_down", f"{inner}.kv_a_proj_with_mqa", bias=bias) | linear("kv", f"{inner}.kv_b_proj")
    tensors |= linear("out", f"{inner}.o_proj", bias=bias) | {"kv_norm": origin(f"{inner}.kv_a_layernorm.weight")}
    if keys["q_rank"] is None:
        return tensors | linear("q", f"{inner}.q_proj")
    tensors |= linear("q_down", f"{inner}.q_a_proj", bias=bias) | linear("q", f"{inner}.q_b_proj")
    return tensors | {"q_norm": origin(f"{inner}.q_a_layernorm.weight")}


def _feeding(config: Config, layer: int, place: str, *, first: int, shared: int) -> Part:
    """The MLP of the first layers, the experts of the others; `first` and `shared` where the config does not say."""
    before, place = norm(f"{place}.post_attention_layernorm"), f"{place}.mlp"
    config.only("hidden_act", "silu", "swish")
    if layer < config.size("first_k_dense_replace", first, least=0):
        mlp = mlp_keys(config)
        return Part(mlp, before, mlp_tensors(place, mlp))
    hidden = config.size("moe_intermediate_size")
    keys: dict[str, Any] = {
        "type": "experts",
        "experts": number_of_experts(config, "n_routed_experts", config.get("num_local_experts")),
        "top_k": config.size("num_experts_per_tok", 8),
        "hidden": hidden,
        "scores": "sigmoid",
        "normalize": config.flag("norm_topk_prob", True),
        "weight_scale": config.number("routed_scaling_factor", 1.0),
        "groups": config.size("n_group", 1),
        "top_groups": config.size("topk_group", 1),
        "bias_rate": 0.0,
        "balance": 0.0,
        "shared": hidden * config.size("n_shared_experts", shared),
    }
    tensors = linear("router", f"{place}.gate")
    tensors |= expert_tensors(f"{place}.experts", keys["experts"], ("gate_proj", "up_proj"), "down_proj")
    tensors["pool.routing.bias"] = origin(f"{place}.gate.e_score_correction_bias")
    beside = mlp_tensors(f"{place}.shared_experts", {})
    return Part(keys, before, tensors | {f"pool.shared.{name}": each for name, each in beside.items()})


ARCHITECTURES: Architectures = {
    "DeepseekV3ForCausalLM": deepseek_v3,
    "Glm4MoeForCausalLM": glm4_moe,
}

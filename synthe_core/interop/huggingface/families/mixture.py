"""Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE and Granite-MoE: attention and experts."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    layer_places,
    mlp_keys,
    mlp_tensors,
    sliding_window,
    transformer_plan,
    windows_of,
)
from synthe_core.interop.huggingface.families.experts import (
    expert_tensors,
    number_of_experts,
    stacked_below,
    stacked_beside,
)
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.rotary import rotary
from synthe_core.interop.huggingface.published import Config


def mixtral(config: Config) -> Plan:
    config.only("hidden_act", "silu", "swish")
    keys = attention_keys(config, groups=8, window=sliding_window(config, None) or "full", **rotary(config, base=1e6))
    number = number_of_experts(config, "num_local_experts", 8)
    top_k = config.size("num_experts_per_tok", 2)
    hidden = config.size("intermediate_size", 14336)
    sizes = {"experts": number, "top_k": top_k, "hidden": hidden}
    experts = {"type": "experts", **sizes, "normalize": True, "balance": 0.0}
    layers = []
    for _, place in layer_places(config):
        attention = Part(keys, norm(f"{place}.input_layernorm"), attention_tensors(f"{place}.self_attn", keys))
        tensors = mixtral_experts(f"{place}.block_sparse_moe", number, f"{place}.mlp")
        layers.append([attention, Part(experts, norm(f"{place}.post_attention_layernorm"), tensors)])
    return transformer_plan(config, layers, eps=config.number("rms_norm_eps", 1e-5))


def qwen2_moe(config: Config) -> Plan:
    window = sliding_window(config) if config.flag("use_sliding_window", False) else None
    first = config.size("max_window_layers", 28, least=0) if window else 0
    kinds = [
        "sliding_attention" if index % 2 == 0 and index < first else "full_attention"
        for index in range(config.size("num_hidden_layers"))
    ]
    bias = "qkv" if config.flag("qkv_bias", True) else "none"
    return _qwen_moe(config, {"bias": bias}, windows_of(config, kinds, window), shared=True)


def qwen3_moe(config: Config) -> Plan:
    bias = "all" if config.flag("attention_bias", False) else "none"
    window = sliding_window(config) if config.flag("use_sliding_window", False) else None
    attention = {"bias": bias, "qk_norm": "weighted", "norm_eps": config.number("rms_norm_eps", 1e-6)}
    windows: list[int | str] = [window or "full"] * config.size("num_hidden_layers")
    return _qwen_moe(config, attention, windows, shared=False, groups=4)


def _qwen_moe(
    config: Config, attention: dict[str, Any], windows: list[int | str], *, shared: bool, groups: int | None = None
) -> Plan:
    """Attention, and experts or in some layers an MLP."""
    config.only("hidden_act", "silu", "swish")
    keys = attention_keys(config, groups=groups, **rotary(config), **attention)
    layers = []
    for index, place in layer_places(config):
        if is_sparse(config, index):
            feeding = qwen_experts(config, shared=shared)
            tensors = qwen_experts_tensors(f"{place}.mlp", feeding)
        else:
            feeding = mlp_keys(config)
            tensors = mlp_tensors(f"{place}.mlp", feeding)
        mixing = attention_tensors(f"{place}.self_attn", keys)
        layers.append(
            [
                Part(keys | {"window": windows[index]}, norm(f"{place}.input_layernorm"), mixing),
                Part(feeding, norm(f"{place}.post_attention_layernorm"), tensors),
            ]
        )
    return transformer_plan(config, layers)


def olmoe(config: Config) -> Plan:
    """Queries and keys of all heads share one norm."""
    config.only("hidden_act", "silu", "swish")
    config.only("clip_qkv", None)  # it bounds them after the norm
    eps, bias = config.number("rms_norm_eps", 1e-5), "all" if config.flag("attention_bias", False) else "none"
    keys = attention_keys(config, bias=bias, qk_norm="joint", norm_eps=eps, **rotary(config))
    experts = {
        "type": "experts",
        "experts": number_of_experts(config, "num_experts", 64),
        "top_k": config.size("num_experts_per_tok", 8),
        "hidden": config.size("intermediate_size", 2048),
        "normalize": config.flag("norm_topk_prob", False),
        "balance": 0.0,
    }
    layers = []
    for _, place in layer_places(config):
        attention = Part(keys, norm(f"{place}.input_layernorm"), attention_tensors(f"{place}.self_attn", keys))
        tensors = qwen_experts_tensors(f"{place}.mlp", experts)
        layers.append([attention, Part(experts, norm(f"{place}.post_attention_layernorm"), tensors)])
    return transformer_plan(config, layers, eps=eps)


def granite_moe(config: Config) -> Plan:
    """Embeddings, scores, what learners add and logits are scaled."""
    config.only("hidden_act", "silu", "swish")
    scaled = {"residual": {"scale": config.number("residual_multiplier", 1.0)}}
    bias = "all" if config.flag("attention_bias", False) else "none"
    scale = config.number("attention_multiplier", 1.0)
    keys = attention_keys(config, bias=bias, scale=scale, **rotary(config)) | scaled
    experts: dict[str, Any] = {
        "type": "experts",
        "experts": number_of_experts(config, "num_local_experts", 8),
        "top_k": config.size("num_experts_per_tok", 2),
        "hidden": config.size("intermediate_size", 11008),
        "normalize": True,
        "balance": 0.0,
        **scaled,
    }
    layers = []
    for _, place in layer_places(config):
        attention = Part(keys, norm(f"{place}.input_layernorm"), attention_tensors(f"{place}.self_attn", keys))
        inner = f"{place}.block_sparse_moe"
        tensors = {
            "router.weight": origin(f"{inner}.router.layer.weight"),
            "pool.gate_up.weight": stacked_below(f"{inner}.input_linear.weight", experts["experts"]),
            "pool.out.weight": stacked_beside(f"{inner}.output_linear.weight", experts["experts"]),
        }
        layers.append([attention, Part(experts, norm(f"{place}.post_attention_layernorm"), tensors)])
    scales = {
        "embedding_scale": config.number("embedding_multiplier", 1.0),
        "logit_scale": 1 / config.number("logits_scaling", 1.0),
    }
    return transformer_plan(config, layers, options=scales)


def is_sparse(config: Config, layer: int) -> bool:
    """Whether a layer of Qwen's has experts: every `decoder_sparse_step`th but for `mlp_only_layers`."""
    if config.get("num_experts") == 0 or layer in config.items("mlp_only_layers", []):
        return False
    return (layer + 1) % config.size("decoder_sparse_step", 1) == 0


def qwen_experts(config: Config, *, normalize: bool = False, shared: bool = True) -> dict[str, Any]:
    """The specification of Qwen's experts. normalize: where the config does not say; shared: one with a gate."""
    keys = {
        "type": "experts",
        "experts": number_of_experts(config, "num_experts", config.get("num_local_experts")),
        "top_k": config.size("num_experts_per_tok"),
        "hidden": config.size("moe_intermediate_size"),
        "normalize": config.flag("norm_topk_prob", normalize),
        "balance": 0.0,
    }
    return keys | ({"shared": config.size("shared_expert_intermediate_size"), "shared_gate": True} if shared else {})


def qwen_experts_tensors(place: str, keys: dict[str, Any]) -> dict[str, Origin]:
    """The tensors of `experts` from those of `place`."""
    tensors = linear("router", f"{place}.gate")
    tensors |= expert_tensors(f"{place}.experts", keys["experts"], ("gate_proj", "up_proj"), "down_proj")
    if "shared" in keys:
        shared = mlp_tensors(f"{place}.shared_expert", {})
        tensors |= {f"pool.shared.{name}": each for name, each in shared.items()}
        tensors |= linear("pool.shared_gate", f"{place}.shared_expert_gate")
    return tensors


def mixtral_experts(place: str, count: int, fused: str) -> dict[str, Origin]:
    """The tensors of `experts` as Mixtral publishes them, or those of `fused`."""
    router = origin(f"{place}.gate.weight")._replace(otherwise=origin(f"{fused}.gate.weight"))
    tensors = expert_tensors(f"{place}.experts", count, ("w1", "w3"), "w2", f"{fused}.experts")
    return {"router.weight": router, **tensors}


ARCHITECTURES: Architectures = {
    "GraniteMoeForCausalLM": granite_moe,
    "MixtralForCausalLM": mixtral,
    "OlmoeForCausalLM": olmoe,
    "Qwen2MoeForCausalLM": qwen2_moe,
    "Qwen3MoeForCausalLM": qwen3_moe,
}

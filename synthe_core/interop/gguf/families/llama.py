"""Llama and its kin: attention and a gated MLP, each with RMS norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from synthe_core.errors import InputError
from synthe_core.interop.gguf.families.architecture import Architecture, Transform, Transforms
from synthe_core.interop.gguf.metadata import Metadata
from synthe_core.interop.gguf.rope_divisors import scaling_of

SCALINGS = "none, linear or yarn"


def transformer(name: str, kind: str | None = None, **more: Any) -> Callable[[Metadata], dict[str, Any]]:
    """The config of a Transformer: `name` without ForCausalLM, its model_type, and `more` keys."""

    def config(data: Metadata) -> dict[str, Any]:
        heads, width = data.size("attention.head_count"), data.size("embedding_length")
        head = data.size("attention.key_length", width // heads)
        if data.size("attention.value_length", head) != head or data.size("rope.dimension_count", head) != head:
            raise data.wrong("rope.dimension_count", data.get("rope.dimension_count"), f"{head}, the size of a head")
        return {
            "architectures": [f"{name}ForCausalLM"],
            "model_type": kind or name.lower(),
            "hidden_size": width,
            "intermediate_size": data.size("feed_forward_length"),
            "num_hidden_layers": data.size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": data.size("attention.head_count_kv", heads),
            "head_dim": head,
            "hidden_act": "silu",
            "max_position_embeddings": data.size("context_length"),
            "rms_norm_eps": data.rounded("attention.layer_norm_rms_epsilon"),
            "rope_theta": data.number("rope.freq_base", 10_000.0),
            "rope_scaling": rope_scaling(data, head),
            "sliding_window": data.optional("attention.sliding_window") or None,
            "pad_token_id": None,
            **more,
        }

    return config


def rope_scaling(data: Metadata, head: int) -> dict[str, Any] | None:
    kind = data.get("rope.scaling.type", "none")
    if not isinstance(kind, str):
        raise data.wrong("rope.scaling.type", kind, SCALINGS)
    if kind == "linear":
        return {"rope_type": "linear", "factor": data.number("rope.scaling.factor")}
    if kind == "yarn":
        return _yarn(data)
    if kind != "none":
        raise data.wrong("rope.scaling.type", kind, SCALINGS)
    return _llama3_scaling(data, head) if "rope_freqs.weight" in data.file else None


def _yarn(data: Metadata) -> dict[str, Any]:
    for key in ("yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"):
        if data.get(f"rope.scaling.{key}") is not None:
            raise data.wrong(f"rope.scaling.{key}", data.get(f"rope.scaling.{key}"), "left out")
    scaling = {
        "rope_type": "yarn",
        "factor": data.number("rope.scaling.factor"),
        "original_max_position_embeddings": data.size(
            "rope.scaling.original_context_length", data.size("context_length")
        ),
    }
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if data.get(f"rope.scaling.{theirs}") is not None:
            scaling[ours] = data.rounded(f"rope.scaling.{theirs}")
    return scaling


def _llama3_scaling(data: Metadata, head: int) -> dict[str, Any]:
    divisors = data.file["rope_freqs.weight"].double().flatten()
    base, contexts = data.number("rope.freq_base", 10_000.0), (8192, data.size("context_length"))
    if (scaling := scaling_of(divisors, head, base, contexts)) is None:
        raise InputError(f"{data.path}: the divisors in rope_freqs.weight are not Llama 3's, and are not supported")
    return scaling


def interleaved(config: dict[str, Any]) -> Transforms:
    """llama.cpp rotates pairs of neighbours in Llama's queries and keys, and transformers the two halves of a head."""

    def halves(heads: int) -> Transform:
        return lambda t: t.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    return {
        "q_proj": halves(config["num_attention_heads"]),
        "k_proj": halves(config["num_key_value_heads"]),
    }


def _llama(data: Metadata) -> dict[str, Any]:
    """Llama, and Mistral, which is the same with a window."""
    if data.optional("expert_count"):
        raise InputError(f"{data.path} has experts, which are not supported in llama")
    name = "Mistral" if data.optional("attention.sliding_window") else "Llama"
    return transformer(name)(data) | _biases(data)


def _biases(data: Metadata) -> dict[str, bool]:
    return {"attention_bias": "blk.0.attn_q.bias" in data.file, "mlp_bias": "blk.0.ffn_up.bias" in data.file}


def _qwen2(data: Metadata) -> dict[str, Any]:
    return transformer("Qwen2", use_sliding_window=False)(data) | {"sliding_window": None}


def _qwen3(data: Metadata) -> dict[str, Any]:
    biased = "blk.0.attn_q.bias" in data.file
    return transformer("Qwen3", use_sliding_window=False, attention_bias=biased)(data) | {"sliding_window": None}


def _qwen3moe(data: Metadata) -> dict[str, Any]:
    """Every layer has experts, whose weights are normalised over those that are chosen."""
    experts = {
        "num_experts": data.size("expert_count"),
        "num_experts_per_tok": data.size("expert_used_count"),
        "moe_intermediate_size": data.size("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "attention_bias": "blk.0.attn_q.bias" in data.file,
        "sliding_window": None,
    }
    return transformer("Qwen3Moe", "qwen3_moe", **experts)(data)


def _granite(data: Metadata) -> dict[str, Any]:
    """Llama with multipliers."""
    return transformer("Granite")(data) | granite_multipliers(data) | _biases(data)


def granite_multipliers(data: Metadata) -> dict[str, float]:
    """The defaults are those of the configuration of transformers."""
    multipliers = {
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    }
    return {ours: data.rounded(theirs, 1.0) for ours, theirs in multipliers.items()}


def _olmo2(data: Metadata) -> dict[str, Any]:
    """OLMo 2, and OLMo 3, which has windows in some layers."""
    config = transformer("Olmo2", attention_bias="blk.0.attn_q.bias" in data.file)(data)
    if config["sliding_window"] is None:
        return config
    layers = config["num_hidden_layers"]
    usual = [(i + 1) % 4 != 0 for i in range(layers)]
    windows = data.flags("attention.sliding_window_pattern", layers) or usual
    kinds = ["sliding_attention" if each else "full_attention" for each in windows]
    base, scaling = {"rope_theta": config.pop("rope_theta")}, config.pop("rope_scaling") or {"rope_type": "default"}
    angles = {"sliding_attention": {"rope_type": "default"} | base, "full_attention": scaling | base}
    more = {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "layer_types": kinds}
    return config | more | {"rope_parameters": angles}  # only full attention has scaled angles


def _phi3(data: Metadata) -> dict[str, Any]:
    heads, width = data.size("attention.head_count"), data.size("embedding_length")
    head, turned = width // heads, data.size("rope.dimension_count")
    limit = data.size("context_length")
    original = data.size("rope.scaling.original_context_length", limit)
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": width,
        "intermediate_size": data.size("feed_forward_length"),
        "num_hidden_layers": data.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": data.size("attention.head_count_kv", heads),
        "hidden_act": "silu",
        "max_position_embeddings": limit,
        "original_max_position_embeddings": original,
        "rms_norm_eps": data.rounded("attention.layer_norm_rms_epsilon"),
        "rope_theta": data.number("rope.freq_base", 10_000.0),
        "partial_rotary_factor": turned / head,
        "rope_scaling": None,
        "sliding_window": data.optional("attention.sliding_window") or None,
        "pad_token_id": None,
    }
    if LONG in data.file and SHORT in data.file:
        factor = data.get("rope.scaling.attn_factor")
        config["rope_scaling"] = {
            "type": "longrope",
            "long_factor": data.file[LONG].flatten().tolist(),
            "short_factor": data.file[SHORT].flatten().tolist(),
            **({} if factor is None else {"attention_factor": data.number("rope.scaling.attn_factor")}),
        }
    return config


LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ATTENTION = {
    "model.layers.{i}.self_attn.q_proj": "blk.{i}.attn_q",
    "model.layers.{i}.self_attn.k_proj": "blk.{i}.attn_k",
    "model.layers.{i}.self_attn.v_proj": "blk.{i}.attn_v",
    "model.layers.{i}.self_attn.o_proj": "blk.{i}.attn_output",
    "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
    "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
}
MLP = {
    "model.layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
    "model.layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
    "model.layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
}
NORMS = {
    "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
}
NORMS_AFTER = {
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "model.layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}
EXPERTS = {
    "model.layers.{i}.mlp.gate": "blk.{i}.ffn_gate_inp",
    "model.layers.{i}.mlp.experts.{e}.gate_proj": "blk.{i}.ffn_gate_exps",
    "model.layers.{i}.mlp.experts.{e}.up_proj": "blk.{i}.ffn_up_exps",
    "model.layers.{i}.mlp.experts.{e}.down_proj": "blk.{i}.ffn_down_exps",
}
FUSED = {
    "model.layers.{i}.self_attn.qkv_proj": "blk.{i}.attn_qkv",
    "model.layers.{i}.self_attn.o_proj": "blk.{i}.attn_output",
    "model.layers.{i}.mlp.gate_up_proj": "blk.{i}.ffn_up",
    "model.layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
}
LLAMA = OUTSIDE | NORMS | ATTENTION | MLP
ARCHITECTURES = {
    "llama": Architecture(_llama, LLAMA, interleaved),
    "qwen2": Architecture(_qwen2, LLAMA),
    "qwen3": Architecture(_qwen3, LLAMA),
    "qwen3moe": Architecture(_qwen3moe, OUTSIDE | NORMS | ATTENTION | EXPERTS),
    "granite": Architecture(_granite, LLAMA, interleaved),
    "olmo2": Architecture(_olmo2, OUTSIDE | NORMS_AFTER | ATTENTION | MLP),
    "phi3": Architecture(_phi3, OUTSIDE | NORMS | FUSED),
}

"""Models whose layers are Mamba-2 or attention: Granite 4 and Nemotron-H, dense and with experts."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.gguf.families.architecture import Architecture, Names, Transforms
from synthe_core.interop.gguf.families.granite_moe import EXPERTS, SHARED, WITHOUT_NORMS, joined
from synthe_core.interop.gguf.families.llama import NORMS, OUTSIDE, granite_multipliers, rope_scaling
from synthe_core.interop.gguf.families.state_space import MAMBA2, mamba2_transforms
from synthe_core.interop.gguf.metadata import Metadata


def _granite(data: Metadata) -> dict[str, Any]:
    """Layers without heads of keys and values are Mamba-2. A file without positions says that its rotary positions are
    not trained."""
    heads, width, inner = data.size("attention.head_count"), data.size("embedding_length"), data.size("ssm.inner_size")
    mamba_heads, experts, hidden = _mamba_heads(data), data.optional("expert_count"), data.size("feed_forward_length")
    if inner % width:
        raise data.wrong("ssm.inner_size", inner, f"a multiple of {width}")
    kv_heads = _a_layer(data, "attention.head_count_kv")
    return {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "hidden_size": width,
        "intermediate_size": hidden,
        "shared_intermediate_size": data.size("expert_shared_feed_forward_length", hidden),
        "num_hidden_layers": data.layers(),
        "num_local_experts": experts,
        "num_experts_per_tok": data.size("expert_used_count") if experts else 0,
        "num_attention_heads": heads,
        "num_key_value_heads": max(kv_heads) or heads,
        "layer_types": ["attention" if count else "mamba" for count in kv_heads],
        "hidden_act": "silu",
        "max_position_embeddings": data.size("context_length"),
        "rms_norm_eps": data.rounded("attention.layer_norm_rms_epsilon"),
        "attention_bias": data.has("attn_q.bias"),
        "mamba_n_heads": mamba_heads,
        "mamba_d_head": inner // mamba_heads,
        "mamba_n_groups": data.size("ssm.group_count"),
        "mamba_d_state": data.size("ssm.state_size"),
        "mamba_d_conv": data.size("ssm.conv_kernel"),
        "mamba_expand": inner // width,
        "mamba_conv_bias": data.has("ssm_conv1d.bias"),
        "mamba_proj_bias": data.has("ssm_in.bias"),
        "pad_token_id": None,
        **granite_multipliers(data),
        **_positions(data, width // heads),
    }


def _positions(data: Metadata, head: int) -> dict[str, Any]:
    if not data.flag("rope.scaling.finetuned", True):
        return {"position_embedding_type": None}
    if (turned := data.size("rope.dimension_count", head)) != head:  # Bamba is such a one
        raise data.wrong("rope.dimension_count", turned, f"{head}, the size of a head")
    given = {"rope_type": "default"} | (rope_scaling(data, head) or {})
    rotary = given | {"rope_theta": data.number("rope.freq_base", 10_000.0)}
    return {"position_embedding_type": "rope", "rope_parameters": rotary}


def _mamba_heads(data: Metadata) -> int:
    heads, inner = data.size("ssm.time_step_rank"), data.size("ssm.inner_size")
    if inner % heads:
        raise data.wrong("ssm.time_step_rank", heads, f"a divisor of {inner}")
    return heads


def _a_layer(data: Metadata, key: str) -> list[int]:
    """The numbers of the layers that predict the next token."""
    layers = data.layers()
    return data.sizes(key, data.size("block_count"))[:layers]


def _granite_transforms(config: dict[str, Any]) -> Transforms:
    return {**mamba2_transforms(config["mamba_n_groups"]), **joined(config)}


def _granite_feeding(data: Metadata) -> Names:
    """Of a model without experts the MLP is what is shared by all tokens beside them in another."""
    if data.optional("expert_count"):
        return SHARED
    return {
        "model.layers.{i}.shared_mlp.input_linear": ("blk.{i}.ffn_gate", "blk.{i}.ffn_up"),
        "model.layers.{i}.shared_mlp.output_linear": "blk.{i}.ffn_down",
    }


def _nemotron_h(data: Metadata) -> dict[str, Any]:
    """One learner a layer: attention where there are heads of keys and values, an MLP or experts where there are hidden
    channels, and else Mamba-2. The least time step is the default of transformers, as a file has none."""
    heads, hidden = data.size("attention.head_count"), _a_layer(data, "feed_forward_length")
    kv_heads, mamba_heads = _a_layer(data, "attention.head_count_kv"), _mamba_heads(data)
    sparse = data.optional("expert_count") > 0
    feeding = "moe" if sparse else "mlp"
    kinds = [
        "full_attention" if count else feeding if channels else "linear_attention"
        for count, channels in zip(kv_heads, hidden, strict=True)
    ]
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "hidden_size": data.size("embedding_length"),
        "num_hidden_layers": len(kinds),
        "layers_block_type": kinds,
        "num_attention_heads": heads,
        "num_key_value_heads": max(kv_heads) or heads,
        "head_dim": data.size("attention.key_length"),
        "max_position_embeddings": data.size("context_length"),
        "layer_norm_epsilon": data.rounded("attention.layer_norm_rms_epsilon", data.number(LAYER_NORM_EPS, 1e-5)),
        "mlp_hidden_act": "relu2",
        "mlp_bias": data.has("ffn_up.bias") or data.has("ffn_up_shexp.bias"),
        "mamba_num_heads": mamba_heads,
        "mamba_head_dim": data.size("ssm.inner_size") // mamba_heads,
        "n_groups": data.size("ssm.group_count"),
        "ssm_state_size": data.size("ssm.state_size"),
        "conv_kernel": data.size("ssm.conv_kernel"),
        "use_conv_bias": data.has("ssm_conv1d.bias"),
        "use_bias": data.has("ssm_in.bias"),
        "mamba_proj_bias": data.has("ssm_in.bias"),
        "attention_bias": data.has("attn_q.bias"),
        "pad_token_id": None,
        "intermediate_size": max(hidden) or 1,
        **(_nemotron_experts(data) if sparse else {}),
    }


def _nemotron_transforms(config: dict[str, Any]) -> Transforms:
    return mamba2_transforms(config["n_groups"])


def _nemotron_experts(data: Metadata) -> dict[str, Any]:
    return {
        "n_routed_experts": data.size("expert_count"),
        "num_experts_per_tok": data.size("expert_used_count"),
        "n_shared_experts": data.size("expert_shared_count", 1),
        "moe_intermediate_size": data.size("expert_feed_forward_length"),
        "moe_shared_expert_intermediate_size": data.size("expert_shared_feed_forward_length"),
        "moe_latent_size": data.optional("moe_latent_size") or None,
        "norm_topk_prob": data.flag("expert_weights_norm", True),
        "routed_scaling_factor": data.rounded("expert_weights_scale", 1.0),
        "n_group": data.size("expert_group_count", 1),
        "topk_group": data.size("expert_group_used_count", 1),
    }


LAYER_NORM_EPS = "attention.layer_norm_epsilon"
"""Another name that Nemotron-H's epsilon has in some files; llama.cpp asks for it."""
MAMBA = {
    name.replace("backbone.", "model.").replace(".mixer.", ".mamba."): place
    for name, place in MAMBA2.items()
    if ".mixer." in name
}
GRANITE: Names = {**OUTSIDE, **NORMS, **WITHOUT_NORMS, **MAMBA, **EXPERTS}
NEMOTRON_H = MAMBA2 | {
    "backbone.layers.{i}.mixer.q_proj": "blk.{i}.attn_q",
    "backbone.layers.{i}.mixer.k_proj": "blk.{i}.attn_k",
    "backbone.layers.{i}.mixer.v_proj": "blk.{i}.attn_v",
    "backbone.layers.{i}.mixer.o_proj": "blk.{i}.attn_output",
    "backbone.layers.{i}.mixer.up_proj": "blk.{i}.ffn_up",
    "backbone.layers.{i}.mixer.down_proj": "blk.{i}.ffn_down",
}
NEMOTRON_H_MOE = NEMOTRON_H | {
    "backbone.layers.{i}.mixer.gate": "blk.{i}.ffn_gate_inp",
    "backbone.layers.{i}.mixer.gate.e_score_correction_bias": "blk.{i}.exp_probs_b.bias",
    "backbone.layers.{i}.mixer.experts.{e}.up_proj": "blk.{i}.ffn_up_exps",
    "backbone.layers.{i}.mixer.experts.{e}.down_proj": "blk.{i}.ffn_down_exps",
    "backbone.layers.{i}.mixer.shared_experts.up_proj": "blk.{i}.ffn_up_shexp",
    "backbone.layers.{i}.mixer.shared_experts.down_proj": "blk.{i}.ffn_down_shexp",
    "backbone.layers.{i}.mixer.fc1_latent_proj": "blk.{i}.ffn_latent_down",
    "backbone.layers.{i}.mixer.fc2_latent_proj": "blk.{i}.ffn_latent_up",
}
ARCHITECTURES = {
    "granitehybrid": Architecture(_granite, GRANITE, _granite_transforms, _granite_feeding),
    "nemotron_h": Architecture(_nemotron_h, NEMOTRON_H, _nemotron_transforms),
    "nemotron_h_moe": Architecture(_nemotron_h, NEMOTRON_H_MOE, _nemotron_transforms),
}

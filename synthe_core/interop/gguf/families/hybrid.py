"""Models with attention and another memory: Falcon-H1 (Mamba-2 beside it) and LFM2 (gated short convolutions)."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.gguf.families.architecture import NO_MIDDLE, Architecture, Transforms
from synthe_core.interop.gguf.families.llama import ATTENTION, transformer
from synthe_core.interop.gguf.families.state_space import mamba2_transforms
from synthe_core.interop.gguf.metadata import Metadata

UNITS = (
    "attention_in_multiplier", "attention_out_multiplier", "embedding_multiplier", "key_multiplier",
    "lm_head_multiplier", "ssm_in_multiplier", "ssm_out_multiplier",
)  # fmt: skip
"""Multipliers that are part of the weights in a file."""


def _falcon_h1(data: Metadata) -> dict[str, Any]:
    heads, inner = data.size("ssm.time_step_rank"), data.size("ssm.inner_size")
    mamba = {
        "mamba_d_ssm": inner,
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_n_groups": data.size("ssm.group_count"),
        "mamba_d_state": data.size("ssm.state_size"),
        "mamba_d_conv": data.size("ssm.conv_kernel"),
        "mamba_rms_norm": "blk.0.ssm_norm.weight" in data.file,
        "mamba_norm_before_gate": False,
        "mamba_conv_bias": "blk.0.ssm_conv1d.bias" in data.file,
        "mamba_proj_bias": "blk.0.ssm_in.bias" in data.file,
        "attention_bias": "blk.0.attn_q.bias" in data.file,
        "mlp_bias": "blk.0.ffn_up.bias" in data.file,
    }
    units = dict.fromkeys(UNITS, 1.0) | {"mlp_multipliers": [1.0, 1.0], "ssm_multipliers": [1.0] * 5}
    return transformer("FalconH1", "falcon_h1", **mamba, **units)(data)


def _mamba2(config: dict[str, Any]) -> Transforms:
    return mamba2_transforms(config["mamba_n_groups"])


def _lfm2(data: Metadata) -> dict[str, Any]:
    """Layers without heads of keys and values are convolutions."""
    heads, width, layers = data.size("attention.head_count"), data.size("embedding_length"), data.layers()
    kv_heads = data.sizes("attention.head_count_kv", layers)
    return {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "hidden_size": width,
        "intermediate_size": data.size("feed_forward_length"),
        "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(kv_heads) or heads,
        "layer_types": ["full_attention" if count else "conv" for count in kv_heads],
        "max_position_embeddings": data.size("context_length"),
        "norm_eps": data.rounded("attention.layer_norm_rms_epsilon"),
        "rope_theta": data.number("rope.freq_base", 10_000.0),
        "conv_L_cache": data.size("shortconv.l_cache"),
        "conv_bias": data.has("shortconv.conv.bias"),
        "pad_token_id": None,
    }


def _convolutions(config: dict[str, Any]) -> Transforms:
    return {"conv": NO_MIDDLE}


FALCON_H1 = {
    "model.embed_tokens": "token_embd",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "model.layers.{i}.pre_ff_layernorm.weight": "blk.{i}.ffn_norm",  # without a suffix there
    "model.layers.{i}.mamba.in_proj": "blk.{i}.ssm_in",
    "model.layers.{i}.mamba.conv1d": "blk.{i}.ssm_conv1d",
    "model.layers.{i}.mamba.dt_bias": "blk.{i}.ssm_dt.bias",
    "model.layers.{i}.mamba.A_log": "blk.{i}.ssm_a",
    "model.layers.{i}.mamba.D": "blk.{i}.ssm_d",
    "model.layers.{i}.mamba.norm": "blk.{i}.ssm_norm",
    "model.layers.{i}.mamba.out_proj": "blk.{i}.ssm_out",
    "model.layers.{i}.feed_forward.gate_proj": "blk.{i}.ffn_gate",
    "model.layers.{i}.feed_forward.up_proj": "blk.{i}.ffn_up",
    "model.layers.{i}.feed_forward.down_proj": "blk.{i}.ffn_down",
} | {name: place for name, place in ATTENTION.items() if not name.endswith("_norm")}
LFM2 = {
    "model.embed_tokens": "token_embd",
    "model.embedding_norm": "token_embd_norm",
    "lm_head": "output",
    "model.layers.{i}.operator_norm": "blk.{i}.attn_norm",
    "model.layers.{i}.ffn_norm": "blk.{i}.ffn_norm",
    "model.layers.{i}.self_attn.q_proj": "blk.{i}.attn_q",
    "model.layers.{i}.self_attn.k_proj": "blk.{i}.attn_k",
    "model.layers.{i}.self_attn.v_proj": "blk.{i}.attn_v",
    "model.layers.{i}.self_attn.out_proj": "blk.{i}.attn_output",
    "model.layers.{i}.self_attn.q_layernorm": "blk.{i}.attn_q_norm",
    "model.layers.{i}.self_attn.k_layernorm": "blk.{i}.attn_k_norm",
    "model.layers.{i}.conv.conv": "blk.{i}.shortconv.conv",
    "model.layers.{i}.conv.in_proj": "blk.{i}.shortconv.in_proj",
    "model.layers.{i}.conv.out_proj": "blk.{i}.shortconv.out_proj",
    "model.layers.{i}.feed_forward.w1": "blk.{i}.ffn_gate",
    "model.layers.{i}.feed_forward.w3": "blk.{i}.ffn_up",
    "model.layers.{i}.feed_forward.w2": "blk.{i}.ffn_down",
}
ARCHITECTURES = {
    "falcon-h1": Architecture(_falcon_h1, FALCON_H1, _mamba2),
    "lfm2": Architecture(_lfm2, LFM2, _convolutions),
}

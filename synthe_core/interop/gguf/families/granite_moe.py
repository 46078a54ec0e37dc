"""Granite 3's models with experts, some with one more that all tokens use."""

from __future__ import annotations

from typing import Any

import torch

from synthe_core.interop.gguf.families.architecture import Architecture, Change, Names, Transforms
from synthe_core.interop.gguf.families.llama import (
    ATTENTION,
    NORMS,
    OUTSIDE,
    granite_multipliers,
    interleaved,
    transformer,
)
from synthe_core.interop.gguf.metadata import Metadata

BESIDE = "shared_intermediate_size"


def _granite_moe(data: Metadata) -> dict[str, Any]:
    """Experts are as wide as `feed_forward_length` says. With a shared one it is Granite 4 without Mamba-2, whose sizes
    no layer has."""
    experts = {
        "num_local_experts": data.size("expert_count"),
        "num_experts_per_tok": data.size("expert_used_count"),
        "attention_bias": "blk.0.attn_q.bias" in data.file,
    }
    config = transformer("GraniteMoe")(data) | granite_multipliers(data) | experts
    if not (shared := data.optional("expert_shared_feed_forward_length")):
        return config
    angles = {"rope_type": "default"} | (config.pop("rope_scaling") or {}) | {"rope_theta": config.pop("rope_theta")}
    width = config["hidden_size"]
    return config | {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        BESIDE: shared,
        "layer_types": ["attention"] * config["num_hidden_layers"],
        "position_embedding_type": "rope",
        "rope_parameters": angles,
        "mamba_n_heads": width,
        "mamba_d_head": 2,
        "mamba_expand": 2,
    }


def joined(config: dict[str, Any]) -> Transforms:
    """Gates and hidden channels are one matrix in transformers."""
    join = Change(lambda *stored: torch.cat(stored, -2), lambda t: t.chunk(2, -2))
    return {**interleaved(config), "input_linear": join}


EXPERTS: Names = {
    "model.layers.{i}.block_sparse_moe.router.layer": "blk.{i}.ffn_gate_inp",
    "model.layers.{i}.block_sparse_moe.input_linear": ("blk.{i}.ffn_gate_exps", "blk.{i}.ffn_up_exps"),
    "model.layers.{i}.block_sparse_moe.output_linear": "blk.{i}.ffn_down_exps",
}
SHARED: Names = {
    "model.layers.{i}.shared_mlp.input_linear": ("blk.{i}.ffn_gate_shexp", "blk.{i}.ffn_up_shexp"),
    "model.layers.{i}.shared_mlp.output_linear": "blk.{i}.ffn_down_shexp",
}
WITHOUT_NORMS: Names = {name: place for name, place in ATTENTION.items() if not name.endswith("_norm")}
ARCHITECTURES = {
    "granitemoe": Architecture(_granite_moe, {**OUTSIDE, **NORMS, **WITHOUT_NORMS, **EXPERTS, **SHARED}, joined),
}

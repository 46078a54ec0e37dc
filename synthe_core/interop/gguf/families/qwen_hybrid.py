"""Qwen3-Next and Qwen3.5: gated delta nets, gated attention in some layers, an MLP or experts in each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthe_core.interop.gguf.families.architecture import (
    LOG_A,
    NO_MIDDLE,
    ONE_MORE,
    Architecture,
    Change,
    Names,
    Transform,
    Transforms,
)
from synthe_core.interop.gguf.families.llama import ATTENTION, EXPERTS, MLP, OUTSIDE, rope_scaling
from synthe_core.interop.gguf.metadata import Metadata

EVERY = 4
"""Of a file that does not say it, every fourth layer is attention."""


def _config(data: Metadata, name: str, kind: str) -> dict[str, Any]:
    """`ssm` names the delta nets: its state is a key head's size, its groups key heads, its time steps value heads."""
    heads, layers = data.size("attention.head_count"), data.layers()
    head = data.size("attention.key_length")
    value_heads, values = data.size("ssm.time_step_rank"), data.size("ssm.inner_size")
    if values % value_heads or value_heads % data.size("ssm.group_count"):
        raise data.wrong("ssm.time_step_rank", value_heads, f"a divisor of {values} and a multiple of ssm.group_count")
    every = data.size("full_attention_interval", EVERY)
    rotary = {
        "rope_theta": data.number("rope.freq_base", 10_000.0),
        "partial_rotary_factor": data.size("rope.dimension_count") / head,
    }
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "hidden_size": data.size("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": data.size("attention.head_count_kv", heads),
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": data.size("context_length"),
        "rms_norm_eps": data.rounded("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default"} | (rope_scaling(data, head) or {}) | rotary,
        "attention_bias": data.has("attn_q.bias"),
        "layer_types": ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)],
        "linear_conv_kernel_dim": data.size("ssm.conv_kernel"),
        "linear_key_head_dim": data.size("ssm.state_size"),
        "linear_num_key_heads": data.size("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": values // value_heads,
        "pad_token_id": None,
    }


def _experts(data: Metadata) -> dict[str, Any]:
    """Every layer has them, with one more that all tokens use."""
    hidden = data.size("expert_feed_forward_length")
    return {
        "num_experts": data.size("expert_count"),
        "num_experts_per_tok": data.size("expert_used_count"),
        "moe_intermediate_size": hidden,
        "shared_expert_intermediate_size": data.size("expert_shared_feed_forward_length", hidden),
    }


def _qwen3_next(data: Metadata) -> dict[str, Any]:
    sparse = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return _config(data, "Qwen3Next", "qwen3_next") | _experts(data) | sparse


def _qwen3_5(data: Metadata) -> dict[str, Any]:
    """Positions of a text are the same along all axes, whatever sections of them images use."""
    hidden = {"intermediate_size": data.size("feed_forward_length")}
    return _config(data, "Qwen3_5", "qwen3_5_text") | hidden


def _qwen3_5_moe(data: Metadata) -> dict[str, Any]:
    return _config(data, "Qwen3_5Moe", "qwen3_5_moe_text") | _experts(data)


def _transforms(config: dict[str, Any]) -> Transforms:
    """A file has the weights of norms as 1 + w, but for those of delta nets, and A = -exp(A_log)."""
    norms = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm")
    centred: dict[str, Transform] = dict.fromkeys(norms, ONE_MORE)
    return centred | {
        "linear_attn.norm": lambda t: t,
        "A_log": LOG_A,
        "conv1d": NO_MIDDLE,
        "shared_expert_gate": Change(lambda t: t.reshape(1, -1), torch.flatten),
    }


def _side_by_side(config: dict[str, Any]) -> Transforms:
    """Qwen3-Next's queries, keys, values and gates of a key head lie together in transformers, and apart in a file."""
    heads, width = config["linear_num_key_heads"], config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] * config["linear_value_head_dim"]

    def join(*stored: Tensor) -> Tensor:
        if len(stored) == 1:
            return stored[0]
        qkv, gates = stored
        parts = [*qkv.split([heads * width, heads * width, values]), gates]
        return torch.cat([part.unflatten(0, (heads, -1)) for part in parts], 1).flatten(0, 1)

    def apart(joined: Tensor) -> tuple[Tensor, Tensor]:
        sizes = [width, width, values // heads, values // heads]
        *qkv, gates = (part.flatten(0, 1) for part in joined.unflatten(0, (heads, -1)).split(sizes, 1))
        return torch.cat(qkv), gates

    return {**_transforms(config), "in_proj_qkvz": Change(join, apart)}


def _by_key_head(config: dict[str, Any]) -> Transforms:
    """Value heads of Qwen3.5: transformers has those of one key head together, a file the first of each key head, then
    the second of each, and so on."""
    heads, size = config["linear_num_key_heads"], config["linear_value_head_dim"]
    group = config["linear_num_value_heads"] // heads
    before = 2 * heads * config["linear_key_head_dim"]

    def swapped(t: Tensor, dim: int, size: int, outer: int = group) -> Tensor:
        return t.unflatten(dim, (outer, -1, size)).transpose(dim, dim + 1).flatten(dim, dim + 2)

    def values_swapped(t: Tensor, outer: int = group) -> Tensor:
        """Of channels that are those of queries, keys and values."""
        return torch.cat([t[:before], swapped(t[before:], 0, size, outer)])

    return {
        **_transforms(config),
        "in_proj_qkv": values_swapped,
        "conv1d": Change(lambda t: NO_MIDDLE.read(values_swapped(t)), lambda t: values_swapped(t.squeeze(1), heads)),
        "in_proj_z": lambda t: swapped(t, 0, size),
        "in_proj_b": lambda t: swapped(t, 0, 1),
        "in_proj_a": lambda t: swapped(t, 0, 1),
        "A_log": Change(lambda t: LOG_A.read(swapped(t, 0, 1)), lambda A_log: LOG_A.write(swapped(A_log, 0, 1, heads))),
        "dt_bias": lambda t: swapped(t, 0, 1),
        "out_proj": lambda t: swapped(t, 1, size),
    }


def _projections(data: Metadata) -> Names:
    """Older files of Qwen3-Next have one matrix, as transformers."""
    one = "blk.0.ssm_in.weight" in data.file
    place = "blk.{i}.ssm_in" if one else ("blk.{i}.attn_qkv", "blk.{i}.attn_gate")
    return {"model.layers.{i}.linear_attn.in_proj_qkvz": place}


COMMON = (
    OUTSIDE
    | ATTENTION
    | {
        "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
        "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
        "model.layers.{i}.linear_attn.conv1d": "blk.{i}.ssm_conv1d",
        "model.layers.{i}.linear_attn.A_log": "blk.{i}.ssm_a",
        "model.layers.{i}.linear_attn.dt_bias": "blk.{i}.ssm_dt.bias",
        "model.layers.{i}.linear_attn.norm": "blk.{i}.ssm_norm",
        "model.layers.{i}.linear_attn.out_proj": "blk.{i}.ssm_out",
    }
)
APART = {
    "model.layers.{i}.linear_attn.in_proj_qkv": "blk.{i}.attn_qkv",
    "model.layers.{i}.linear_attn.in_proj_z": "blk.{i}.attn_gate",
    "model.layers.{i}.linear_attn.in_proj_b": "blk.{i}.ssm_beta",
    "model.layers.{i}.linear_attn.in_proj_a": "blk.{i}.ssm_alpha",
}
SPARSE = EXPERTS | {
    "model.layers.{i}.mlp.shared_expert.gate_proj": "blk.{i}.ffn_gate_shexp",
    "model.layers.{i}.mlp.shared_expert.up_proj": "blk.{i}.ffn_up_shexp",
    "model.layers.{i}.mlp.shared_expert.down_proj": "blk.{i}.ffn_down_shexp",
    "model.layers.{i}.mlp.shared_expert_gate": "blk.{i}.ffn_gate_inp_shexp",
}
QWEN3_NEXT: Names = {**COMMON, **SPARSE, "model.layers.{i}.linear_attn.in_proj_ba": "blk.{i}.ssm_ba"}
ARCHITECTURES = {
    "qwen3next": Architecture(_qwen3_next, QWEN3_NEXT, _side_by_side, _projections),
    "qwen35": Architecture(_qwen3_5, COMMON | APART | MLP, _by_key_head),
    "qwen35moe": Architecture(_qwen3_5_moe, COMMON | APART | SPARSE, _by_key_head),
}

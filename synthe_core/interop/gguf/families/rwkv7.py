"""RWKV-7."""

from __future__ import annotations

from typing import Any

import torch

from synthe_core.interop.gguf.families.architecture import Architecture, Change, Names, Place, Transforms
from synthe_core.interop.gguf.metadata import Metadata

LERPS = "rwkvag"
"""The order of the mixes, which are one tensor in a file."""


def _config(data: Metadata) -> dict[str, Any]:
    ranks = {"decay": "decay", "a": "iclr", "v": "value_residual_mix", "gate": "gate"}
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "hidden_size": data.size("embedding_length"),
        "intermediate_size": data.size("feed_forward_length"),
        "num_hidden_layers": data.layers(),
        "head_dim": data.size("wkv.head_size"),
        "norm_eps": data.rounded("attention.layer_norm_epsilon"),
        "norm_bias": True,
        "norm_first": True,
        "fuse_norm": False,
        "max_position_embeddings": data.size("context_length"),
        **{f"{ours}_low_rank_dim": data.size(f"attention.{theirs}_lora_rank", 1) for ours, theirs in ranks.items()},
    }


def _flat(config: dict[str, Any]) -> Transforms:
    """Vectors may have dimensions of 1 before theirs."""
    flat = Change(torch.flatten, lambda t: t)
    heads = Change(lambda t: t.view(-1, config["head_dim"]), torch.flatten)
    return dict.fromkeys(("k_k", "k_a", "x_k", *(f"x_{letter}" for letter in LERPS)), flat) | {"r_k": heads}


def _values(data: Metadata) -> Names:
    """The first layer mixes in no values, whatever a file has there."""
    names: dict[str, str] = {}
    for i in range(1, data.layers()):
        lora = f"model.layers.{i}.attn.v_lora.lora"
        names |= _lora(lora, f"blk.{i}.time_mix_v")
    return names


def _lora(theirs: str, place: str) -> dict[str, str]:
    return {f"{theirs}.0": f"{place}1", f"{theirs}.2": f"{place}2", f"{theirs}.2.bias": f"{place}0.weight"}


LAYER, BLOCK = "model.layers.{i}.", "blk.{i}."
NAMES: Names = {
    "model.embeddings": "token_embd",
    "model.layers.0.pre_norm": "token_embd_norm",
    "model.norm": "output_norm",
    "lm_head": "output",
    LAYER + "attn_norm": BLOCK + "attn_norm",
    LAYER + "ffn_norm": BLOCK + "attn_norm_2",
    **{f"{LAYER}attn.x_{letter}": Place((BLOCK + "time_mix_lerp_fused.weight",), i) for i, letter in enumerate(LERPS)},
    **_lora(LAYER + "attn.w_lora.lora", BLOCK + "time_mix_w"),
    **_lora(LAYER + "attn.a_lora.lora", BLOCK + "time_mix_a"),
    LAYER + "attn.g_lora.lora.0": BLOCK + "time_mix_g1",
    LAYER + "attn.g_lora.lora.2": BLOCK + "time_mix_g2",
    **{f"{LAYER}attn.{name}": f"{BLOCK}time_mix_{name}.weight" for name in ("k_k", "k_a", "r_k")},
    LAYER + "attn.r_proj": BLOCK + "time_mix_receptance",
    LAYER + "attn.k_proj": BLOCK + "time_mix_key",
    LAYER + "attn.v_proj": BLOCK + "time_mix_value",
    LAYER + "attn.o_proj": BLOCK + "time_mix_output",
    LAYER + "attn.g_norm": BLOCK + "time_mix_ln",
    LAYER + "ffn.x_k": BLOCK + "channel_mix_lerp_k.weight",
    LAYER + "ffn.key": BLOCK + "channel_mix_key",
    LAYER + "ffn.value": BLOCK + "channel_mix_value",
}
IGNORED = tuple(f"blk.0.time_mix_v{i}.weight" for i in range(3))
ARCHITECTURES = {"rwkv7": Architecture(_config, NAMES, _flat, _values)}

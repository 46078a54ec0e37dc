"""Gemma 2 and 3. A file has the weights of norms as 1 + w."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.gguf.families.architecture import ONE_MORE, Architecture, Transforms
from synthe_core.interop.gguf.families.llama import ATTENTION, MLP, OUTSIDE, rope_scaling
from synthe_core.interop.gguf.metadata import Metadata

LARGEST = {"gemma2": 46, "gemma3": 62}
"""The layers of the model of 27B, whose queries are scaled by the width over the heads instead of a head's size."""
EVERY = 6
"""Of Gemma 3's layers every sixth sees all tokens."""


def _config(data: Metadata) -> dict[str, Any]:
    heads, width = data.size("attention.head_count"), data.size("embedding_length")
    head, layers = data.size("attention.key_length", width // heads), data.size("block_count")
    is_largest = layers == LARGEST[data.architecture]
    return {
        "hidden_size": width,
        "intermediate_size": data.size("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": data.size("attention.head_count_kv", heads),
        "head_dim": head,
        "query_pre_attn_scalar": width // heads if is_largest else head,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": data.size("context_length"),
        "rms_norm_eps": data.rounded("attention.layer_norm_rms_epsilon"),
        "rope_theta": data.number("rope.freq_base", 10_000.0),
        "attn_logit_softcapping": _cap(data, "attn_logit_softcapping"),
        "final_logit_softcapping": _cap(data, "final_logit_softcapping"),
        "attention_bias": False,
        "pad_token_id": None,
    }


def _cap(data: Metadata, key: str) -> float | None:
    return None if data.get(key) is None else data.rounded(key)


def _gemma2(data: Metadata) -> dict[str, Any]:
    config = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"} | _config(data)
    kinds = ["sliding_attention", "full_attention"]
    layers = [kinds[i % 2] for i in range(config["num_hidden_layers"])]
    return config | {"sliding_window": data.size("attention.sliding_window"), "layer_types": layers}


def _gemma3(data: Metadata) -> dict[str, Any]:
    """Layers with a window have a rotary base of their own, which a file may leave out."""
    config = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"} | _config(data)
    window = data.optional("attention.sliding_window")
    every = EVERY if window else 1
    layers = range(1, config["num_hidden_layers"] + 1)
    return config | {
        "rope_theta": data.number("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": data.number("rope.freq_base_swa", 10_000.0),
        "rope_scaling": rope_scaling(data, config["head_dim"]),
        "sliding_window": window or config["max_position_embeddings"],
        "layer_types": ["full_attention" if i % every == 0 else "sliding_attention" for i in layers],
    }


def _norms(config: dict[str, Any]) -> Transforms:
    names = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    return dict.fromkeys((*names, "q_norm", "k_norm", "norm"), ONE_MORE)


NORMS = {
    "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    "model.layers.{i}.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
}
GEMMA = OUTSIDE | NORMS | ATTENTION | MLP
ARCHITECTURES = {
    "gemma2": Architecture(_gemma2, GEMMA, _norms),
    "gemma3": Architecture(_gemma3, GEMMA, _norms),
}

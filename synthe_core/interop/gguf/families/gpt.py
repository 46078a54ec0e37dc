"""GPT-2 and GPT-NeoX: LayerNorms with biases, and one matrix for queries, keys and values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from synthe_core.interop.gguf.families.architecture import Architecture, Change, Transforms
from synthe_core.interop.gguf.metadata import Metadata


def _gpt2(data: Metadata) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": data.size("embedding_length"),
        "n_layer": data.size("block_count"),
        "n_head": data.size("attention.head_count"),
        "n_inner": data.size("feed_forward_length"),
        "n_positions": data.size("context_length"),
        "layer_norm_epsilon": data.rounded("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _transposed(config: dict[str, Any]) -> Transforms:
    """transformers has the matrices of GPT-2 with their inputs as rows."""

    def transpose(t: Tensor) -> Tensor:
        return t.T.contiguous() if t.dim() == 2 else t

    return dict.fromkeys(("c_attn", "c_proj", "c_fc"), Change(transpose, transpose))


def _gptneox(data: Metadata) -> dict[str, Any]:
    heads, width = data.size("attention.head_count"), data.size("embedding_length")
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": width,
        "intermediate_size": data.size("feed_forward_length"),
        "num_hidden_layers": data.size("block_count"),
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "max_position_embeddings": data.size("context_length"),
        "layer_norm_eps": data.rounded("attention.layer_norm_epsilon"),
        "rotary_pct": data.size("rope.dimension_count") / (width // heads),
        "rotary_emb_base": data.number("rope.freq_base", 10_000.0),
        "use_parallel_residual": data.flag("use_parallel_residual", True),
        "attention_bias": "blk.0.attn_qkv.bias" in data.file,
    }


def _by_heads(config: dict[str, Any]) -> Transforms:
    """A file has all queries, then all keys and all values; transformers has the three of each head together."""
    heads = config["num_attention_heads"]
    return {"query_key_value": lambda t: t.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)}


GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "transformer.h.{i}.ln_1": "blk.{i}.attn_norm",
    "transformer.h.{i}.attn.c_attn": "blk.{i}.attn_qkv",
    "transformer.h.{i}.attn.c_proj": "blk.{i}.attn_output",
    "transformer.h.{i}.ln_2": "blk.{i}.ffn_norm",
    "transformer.h.{i}.mlp.c_fc": "blk.{i}.ffn_up",
    "transformer.h.{i}.mlp.c_proj": "blk.{i}.ffn_down",
}
NEOX = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "gpt_neox.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "gpt_neox.layers.{i}.attention.query_key_value": "blk.{i}.attn_qkv",
    "gpt_neox.layers.{i}.attention.dense": "blk.{i}.attn_output",
    "gpt_neox.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
    "gpt_neox.layers.{i}.mlp.dense_h_to_4h": "blk.{i}.ffn_up",
    "gpt_neox.layers.{i}.mlp.dense_4h_to_h": "blk.{i}.ffn_down",
}
ARCHITECTURES = {
    "gpt2": Architecture(_gpt2, GPT2, _transposed),
    "gptneox": Architecture(_gptneox, NEOX, _by_heads),
}

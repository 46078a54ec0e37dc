"""Dense Transformers against transformers: Gemma, OLMo, Phi, Granite, SmolLM3, GPT-NeoX, GPT-2 and their kin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop.huggingface.families import check_family

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SIZES = HEADS | {"intermediate_size": 72, "num_hidden_layers": 3, "pad_token_id": 0}
NEOX = {"num_attention_heads": 4, "intermediate_size": 72, "num_hidden_layers": 3}
GPT2 = {"n_head": 4, "n_layer": 3, "n_positions": 64}
OPT = {
    "pad_token_id": 0,
    "num_attention_heads": 4, "num_hidden_layers": 3, "ffn_dim": 72, "word_embed_proj_dim": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
FALCON = {"num_attention_heads": 4, "num_hidden_layers": 3}
GLM = SIZES | {"head_dim": 16}
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 1e4,
}  # fmt: skip
GEMMA = SIZES | {"head_dim": 10}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", GEMMA),
    "gemma, untied, biases": ("Gemma", GEMMA | {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma, one key head, gelu": ("Gemma", GEMMA | {"num_key_value_heads": 1, "hidden_act": "gelu", "head_dim": 24}),
    "gemma 2": ("Gemma2", GEMMA | {"sliding_window": 7, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 12}),
    "gemma 2, without caps, untied": (
        "Gemma2",
        GEMMA | {
            "sliding_window": 5, "attn_logit_softcapping": None, "final_logit_softcapping": None,
            "tie_word_embeddings": False, "attention_bias": True,
        },
    ),
    "gemma 2, other layers": (
        "Gemma2",
        GEMMA | {
            "layer_types": ["full_attention", "full_attention", "sliding_attention"], "sliding_window": 9,
            "final_logit_softcapping": 1.5, "hidden_activation": "silu", "num_key_value_heads": 4,
        },
    ),
    "gemma 3": ("Gemma3", GEMMA | {"sliding_window": 7, "num_hidden_layers": 7}),
    "gemma 3, two scales of positions, caps": (
        "Gemma3",
        GEMMA | {
            "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 20, "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "gemma 3, untied, biases": (
        "Gemma3", GEMMA | {"tie_word_embeddings": False, "attention_bias": True, "sliding_window_pattern": 2}
    ),
    "vault gemma": ("VaultGemma", GEMMA | {"sliding_window": 6, "attn_logit_softcapping": 3.0}),
    "olmo": ("Olmo", SIZES),
    "olmo, clipped, biases": ("Olmo", SIZES | {"clip_qkv": 0.7, "attention_bias": True, "num_key_value_heads": 4}),
    "olmo, tied, linear": (
        "Olmo", SIZES | {"tie_word_embeddings": True, "rope_parameters": LINEAR, "hidden_act": "gelu"}
    ),
    "olmo 2": ("Olmo2", SIZES),
    "olmo 2, biases, one key head": ("Olmo2", SIZES | {"attention_bias": True, "num_key_value_heads": 1}),
    "olmo 2, tied": ("Olmo2", SIZES | {"tie_word_embeddings": True, "rms_norm_eps": 1e-2, "rope_parameters": YARN}),
    "olmo 3": ("Olmo3", SIZES | {"num_hidden_layers": 5, "sliding_window": 7}),
    "olmo 3, YaRN on full layers": (
        "Olmo3",
        SIZES | {
            "sliding_window": 6, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 9e3}
            },
        },
    ),
    "olmo 3, tied, biases": (
        "Olmo3", SIZES | {"tie_word_embeddings": True, "attention_bias": True, "sliding_window": 3}
    ),
    "exaone 4": ("Exaone4", SIZES | {"num_hidden_layers": 5, "sliding_window": 7}),
    "exaone 4, no windows": ("Exaone4", SIZES | {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "exaone 4, tied": (
        "Exaone4",
        SIZES | {
            "tie_word_embeddings": True, "sliding_window": 5, "rope_parameters": LLAMA3, "head_dim": 12,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "phi 3": ("Phi3", SIZES),
    "phi 3, window, tied": ("Phi3", SIZES | {"sliding_window": 7, "tie_word_embeddings": True}),
    "phi 3, longrope": (
        "Phi3",
        SIZES | {
            "original_max_position_embeddings": 64, "max_position_embeddings": 256, "num_key_value_heads": None,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.3, 1.5, 1.9, 2.0, 2.2, 3.0],
                "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
            },
        },
    ),
    "phi 3, partial": (
        "Phi3", SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e3, "partial_rotary_factor": 0.75}}
    ),
    "phi": ("Phi", SIZES),
    "phi, quarter of a head": (
        "Phi", SIZES | {"rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 0.25}, "hidden_act": "gelu"}
    ),
    "phi, all heads": ("Phi", SIZES | {"num_key_value_heads": 4, "layer_norm_eps": 1e-2}),
    "granite": ("Granite", SIZES),
    "granite, multipliers": (
        "Granite",
        SIZES | {
            "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22,
            "attention_multiplier": 0.015625,
        },
    ),
    "granite, biases, tied": (
        "Granite",
        SIZES | {
            "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "residual_multiplier": 0.5,
            "head_dim": 10,
        },
    ),
    "smollm3": ("SmolLM3", SIZES | {"num_hidden_layers": 5}),
    "smollm3, windows, biases": (
        "SmolLM3",
        SIZES | {
            "no_rope_layers": [0, 1, 1], "use_sliding_window": True, "sliding_window": 6, "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "smollm3, biases": ("SmolLM3", SIZES | {"no_rope_layers": [1, 1, 1], "attention_bias": True}),
    "smollm3, YaRN": (
        "SmolLM3", SIZES | {"no_rope_layer_interval": 2, "rope_parameters": YARN, "pad_token_id": 0}
    ),
    "gpt-neox": ("GPTNeoX", NEOX),
    "gpt-neox, one after the other": (
        "GPTNeoX", NEOX | {"use_parallel_residual": False, "tie_word_embeddings": True, "hidden_act": "relu"}
    ),
    "gpt-neox, no biases": (
        "GPTNeoX",
        NEOX | {
            "attention_bias": False, "rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 1.0},
            "hidden_act": "gelu_new", "num_attention_heads": 8,
        },
    ),
    "gpt-2": ("GPT2", GPT2),
    "gpt-2, untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 72, "activation_function": "relu"}),
    "gpt-2, scales": (
        "GPT2", GPT2 | {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "n_head": 2}
    ),
    "stablelm": ("StableLm", SIZES),
    "stablelm, parallel": ("StableLm", SIZES | {"use_parallel_residual": True, "use_qkv_bias": True}),
    "stablelm, tied": (
        "StableLm",
        SIZES | {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 0.5}},
    ),
    "starcoder2": ("Starcoder2", SIZES | {"sliding_window": 7}),
    "starcoder2, no biases": ("Starcoder2", SIZES | {"use_bias": False, "tie_word_embeddings": False}),
    "starcoder2, gelu": ("Starcoder2", SIZES | {"hidden_act": "gelu", "norm_epsilon": 1e-2, "num_key_value_heads": 1}),
    "cohere": ("Cohere", SIZES | {"logit_scale": 0.25}),
    "cohere, biases, untied": ("Cohere", SIZES | {"attention_bias": True, "tie_word_embeddings": False}),
    "cohere, all heads": (
        "Cohere", SIZES | {"num_key_value_heads": 4, "rope_parameters": LINEAR, "layer_norm_eps": 0.1}
    ),
    "cohere 2": ("Cohere2", SIZES | {"num_hidden_layers": 5, "sliding_window": 7}),
    "cohere 2, biases": ("Cohere2", SIZES | {"attention_bias": True, "sliding_window_pattern": 2, "sliding_window": 4}),
    "cohere 2, untied": (
        "Cohere2",
        SIZES | {
            "tie_word_embeddings": False, "logit_scale": 1.5, "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "nemotron": ("Nemotron", SIZES),
    "nemotron, biases, tied": (
        "Nemotron", SIZES | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "norm_eps": 1e-2}
    ),
    "nemotron, whole heads": (
        "Nemotron", SIZES | {"rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 1.0}, "head_dim": 12}
    ),
    "helium": ("Helium", SIZES | {"head_dim": 16}),
    "helium, biases": ("Helium", SIZES | {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "helium, tied": ("Helium", SIZES | {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "ernie 4.5": ("Ernie4_5", SIZES | {"head_dim": 12}),
    "ernie 4.5, biases, untied": ("Ernie4_5", SIZES | {"use_bias": True, "tie_word_embeddings": False}),
    "ernie 4.5, one key head": ("Ernie4_5", SIZES | {"head_dim": 24, "num_key_value_heads": 1, "use_bias": True}),
    "glm": ("Glm", GLM),
    "glm, no biases, tied": ("Glm", GLM | {"attention_bias": False, "tie_word_embeddings": True}),
    "glm, quarter of a head": (
        "Glm", GLM | {"rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 0.25}, "num_key_value_heads": 1}
    ),
    "glm 4": ("Glm4", GLM),
    "glm 4, no biases, tied": ("Glm4", GLM | {"attention_bias": False, "tie_word_embeddings": True}),
    "glm 4, whole heads": (
        "Glm4", GLM | {"rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 1.0}, "num_key_value_heads": 4}
    ),
    "seed-oss": ("SeedOss", SIZES | {"head_dim": 12}),
    "seed-oss, other biases": (
        "SeedOss", SIZES | {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True}
    ),
    "seed-oss, all biases, tied": ("SeedOss", SIZES | {"attention_out_bias": True, "tie_word_embeddings": True}),
    "ministral": ("Ministral", SIZES | {"sliding_window": 7, "head_dim": 16}),
    "ministral, layers": (
        "Ministral",
        SIZES | {
            "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "head_dim": 12,
        },
    ),
    "ministral, no window, tied": (
        "Ministral", SIZES | {"layer_types": ["full_attention"] * 3, "tie_word_embeddings": True, "head_dim": 10}
    ),
    "arcee": ("Arcee", SIZES),
    "arcee, biases": ("Arcee", SIZES | {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN}),
    "arcee, tied": ("Arcee", SIZES | {"tie_word_embeddings": True, "head_dim": 10, "num_key_value_heads": 1}),
    "gpt-j": ("GPTJ", GPT2 | {"rotary_dim": 6}),
    "gpt-j, whole heads": ("GPTJ", GPT2 | {"rotary_dim": 16, "n_inner": 72, "activation_function": "gelu"}),
    "gpt-j, eight heads": ("GPTJ", GPT2 | {"rotary_dim": 4, "n_head": 8, "layer_norm_epsilon": 1e-2}),
    "gpt-bigcode": ("GPTBigCode", GPT2),
    "gpt-bigcode, all heads": ("GPTBigCode", GPT2 | {"multi_query": False, "tie_word_embeddings": False}),
    "gpt-bigcode, unscaled": ("GPTBigCode", GPT2 | {"scale_attn_weights": False, "n_inner": 72, "n_head": 8}),
    "opt": ("OPT", OPT | {"enable_bias": False}),  # with biases, the gradient of those of keys is rounding of 0
    "opt, untied": ("OPT", OPT | {"enable_bias": False, "tie_word_embeddings": False}),
    "opt, gelu": ("OPT", OPT | {"enable_bias": False, "activation_function": "gelu", "num_attention_heads": 8}),
    "falcon": ("Falcon", FALCON),
    "falcon, groups": ("Falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon, groups, one norm": (
        "Falcon",
        FALCON | {
            "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
    ),
    "falcon, all heads, one after the other": (
        "Falcon", FALCON | {"multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 72}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    kind, options = CASES[case]
    check_family(tmp_path, kind, **options)

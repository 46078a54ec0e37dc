"""Dense Transformers against transformers: Gemma, OLMo, Phi, Granite, SmolLM3, GPT-NeoX, GPT-2 and their kin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop.huggingface.families import check_family

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SIZES = HEADS | {"intermediate_size": 72, "num_hidden_layers": 3}
GEMMA = SIZES | {"head_dim": 10, "pad_token_id": 0}
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
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    kind, options = CASES[case]
    check_family(tmp_path, kind, **options)

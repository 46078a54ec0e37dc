"""Recurrent hybrids in our learners: LFM2, RecurrentGemma, xLSTM, MiniMax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthe_core.interop.huggingface.published import UnsupportedModel
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.families import check_family
from tests.interop.huggingface.models import published

LFM2 = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
LFM2 |= {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8}
XLSTM = {"num_hidden_layers": 2, "num_heads": 4, "autocast_kernel_dtype": "float32", "chunk_size": 64}
GEMMA = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
MINIMAX = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
MINIMAX |= {"num_local_experts": 5, "block_size": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("Lfm2", LFM2),
    "lfm2, biases, untied, as it is": (
        "Lfm2",
        LFM2 | {"conv_bias": True, "conv_L_cache": 4, "tie_word_embeddings": False, "num_key_value_heads": 1}
        | {"block_auto_adjust_ff_dim": False, "norm_eps": 1e-3},
    ),
    "lfm2, another pattern": (
        "Lfm2",
        LFM2 | {"layer_types": ["full_attention", "conv"] * 2, "num_hidden_layers": 4, "hidden_size": 40}
        | {"block_ffn_dim_multiplier": 1.3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "xlstm": ("xLSTM", XLSTM),
    "xlstm, fused": ("xLSTM", XLSTM | {"weight_mode": "fused", "qk_dim_factor": 0.25, "gate_soft_cap": 3.0}),
    "xlstm, one head, odd sizes": (
        "xLSTM",
        XLSTM | {"hidden_size": 36, "num_heads": 3, "v_dim_factor": 1.5, "norm_eps": 1e-3, "ffn_proj_factor": 1.3}
        | {"ffn_round_up_to_multiple_of": 8, "output_logit_soft_cap": 2.0},
    ),
    "recurrent gemma": ("RecurrentGemma", GEMMA | {"attention_window_size": 9, "num_key_value_heads": 1}),
    "recurrent gemma, untied, biases": (
        "RecurrentGemma",
        GEMMA | {"block_types": ["attention", "recurrent"], "attention_bias": True, "tie_word_embeddings": False}
        | {"conv1d_width": 2, "hidden_activation": "silu", "logits_soft_cap": 3.0, "rms_norm_eps": 1e-3},
    ),
    "recurrent gemma, a wide recurrence": (
        "RecurrentGemma",
        GEMMA | {"hidden_size": 48, "lru_width": 60, "num_attention_heads": 6, "num_hidden_layers": 4}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0}},
    ),
    "minimax": ("MiniMax", MINIMAX),
    "minimax, factors, tied": (
        "MiniMax",
        MINIMAX | {"tie_word_embeddings": True, "head_dim": 10, "num_key_value_heads": 4, "num_experts_per_tok": 3}
        | {"full_attn_alpha_factor": 1.3, "full_attn_beta_factor": 0.8, "linear_attn_alpha_factor": 0.7}
        | {"linear_attn_beta_factor": 1.1, "mlp_alpha_factor": 1.2, "mlp_beta_factor": 0.9},
    ),
    "minimax, another pattern": (
        "MiniMax",
        MINIMAX | {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 4}
        | {"layer_types": ["linear_attention"] * 3 + ["full_attention"], "rms_norm_eps": 1e-3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options = CASES[case]
    if options.get("weight_mode") == "fused":  # its initial values, which fail for fused weights, are not needed
        xlstm = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
        monkeypatch.setattr(xlstm.xLSTMPreTrainedModel, "_init_weights", lambda *_: None)
    check_family(tmp_path, kind, **options)


REFUSED = {
    "xlstm, biases": ("xLSTM", XLSTM | {"use_bias": True}, "use_bias is True"),
    "minimax, one expert a token": ("MiniMax", MINIMAX | {"num_experts_per_tok": 1}, "num_experts_per_tok"),
    "xlstm, another epsilon": ("xLSTM", XLSTM | {"eps": 1e-3}, "eps is 0.001"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_expressed_is_refused_by_name(tmp_path: Path, case: str) -> None:
    kind, options, message = REFUSED[case]
    published(tmp_path, kind, **options)
    with pytest.raises(UnsupportedModel, match=message):
        Checkpoint.open(tmp_path)

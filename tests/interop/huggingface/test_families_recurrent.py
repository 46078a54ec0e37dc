"""Recurrent hybrids in our learners: LFM2, RecurrentGemma, xLSTM, MiniMax, Kimi-Linear, OLMo-Hybrid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.published import Config, UnsupportedModel
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.families import assert_close, check_family, published_gradients
from tests.interop.huggingface.models import VOCAB, published

LFM2 = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
LFM2 |= {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8}
XLSTM = {"num_hidden_layers": 2, "num_heads": 4, "autocast_kernel_dtype": "float32", "chunk_size": 64}
GEMMA = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
MINIMAX = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
MINIMAX |= {"num_local_experts": 5, "block_size": 16}
KIMI = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 40}
KIMI |= {"linear_num_heads": 2, "linear_head_dim": 6, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4}
KIMI |= {"v_head_dim": 5, "num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
KIMI |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KIMI |= {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
OLMO = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40}
OLMO |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 5, "linear_value_head_dim": 6}
OLMO |= {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
OLMO |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
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
    "minimax, one expert a token": ("MiniMax", MINIMAX | {"num_experts_per_tok": 1}),
    "kimi linear": ("KimiLinear", KIMI),
    "kimi linear, groups, biases": (
        "KimiLinear",
        KIMI | {"q_lora_rank": 7, "attention_bias": True, "n_group": 3, "topk_group": 2, "n_shared_experts": 2}
        | {"mlp_layer_types": ["sparse", "dense", "sparse"], "norm_topk_prob": False, "rms_norm_eps": 1e-3},
    ),
    "kimi linear, sparse alone": (
        "KimiLinear",
        KIMI | {"mlp_layer_types": ["sparse"] * 4, "num_hidden_layers": 4, "num_experts_per_tok": 3}
        | {"layer_types": ["full_attention", "linear_attention"] * 2, "hidden_size": 36, "linear_conv_kernel_dim": 3}
        | {"routed_scaling_factor": 1.0, "linear_num_heads": 3, "v_head_dim": 12},
    ),
    "olmo hybrid": ("OlmoHybrid", OLMO),
    "olmo hybrid, biases, no positions, tied": (
        "OlmoHybrid",
        OLMO | {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": None}}
        | {"linear_allow_neg_eigval": False, "linear_num_value_heads": 2, "rms_norm_eps": 1e-3},
    ),
    "olmo hybrid, another pattern": (
        "OlmoHybrid",
        OLMO | {"layer_types": ["full_attention", "linear_attention"] * 2, "num_hidden_layers": 4, "hidden_size": 40}
        | {"num_key_value_heads": 4, "linear_num_key_heads": 3, "linear_num_value_heads": 3},
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


@pytest.mark.parametrize("case", ["minimax", "minimax, another pattern"])
def test_gradients_in_float64_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    """What the largest difference in float32 is: rounding of what is 0 with one expert a token, and no formula."""
    kind, options = CASES[case]
    peer = published(tmp_path, kind, **options)
    peer.set_experts_implementation("eager")  # the other has no float64
    torch.manual_seed(1)
    text = torch.randint(0, VOCAB, (2, 40))
    inputs, targets = text[:, :-1], text[:, 1:]
    ours = published_gradients(tmp_path, Checkpoint.open(tmp_path).model().double(), inputs, targets)
    logits = peer.double()(inputs, use_cache=False).logits
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    compared = [name for name in ours if name in theirs]  # experts have other names in a file
    assert len(compared) > 20
    for name in compared:
        assert_close(ours[name], theirs[name], 5e-6, f"the gradient of {name}")


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "kimi linear, fewer experts": ("KimiLinear", KIMI, {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    "kimi linear, positions": ("KimiLinear", KIMI, {"mla_use_nope": False}, "mla_use_nope is False"),
    "lfm2, another layer": ("Lfm2", LFM2, {"layer_types": ["conv", "x", "conv"]}, "layer_types is 'x'"),
    "minimax, a window": ("MiniMax", MINIMAX, {"sliding_window": 7}, "sliding_window is 7"),
    "olmo hybrid, another activation": ("OlmoHybrid", OLMO, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "recurrent gemma, a block": ("RecurrentGemma", GEMMA, {"block_types": ["mamba"]}, "block_types is 'mamba'"),
    "xlstm, biases": ("xLSTM", XLSTM, {"use_bias": True}, "use_bias is True"),
    "xlstm, another epsilon": ("xLSTM", XLSTM, {"eps": 1e-3}, "eps is 0.001"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_expressed_is_refused_by_name(tmp_path: Path, case: str) -> None:
    kind, options, changed, message = REFUSED[case]
    published(tmp_path, kind, **options)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=message):
        plan(Config.read(tmp_path / "config.json"))


def test_kimi_linear_as_its_authors_publish_it(tmp_path: Path) -> None:
    """Their config.json counts layers from 1, and their dense MLP has a name of its own."""
    peer = published(tmp_path / "saved", "KimiLinear", **KIMI)
    folder = tmp_path / "authors"
    folder.mkdir()
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    dense = ".layers.0.block_sparse_moe."
    save_file(
        {name.replace(dense, ".layers.0.mlp."): tensor for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    assert any(dense in name for name in tensors)
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    for key in ("layer_types", "mlp_layer_types", "linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim"):
        del config[key]
    config["linear_attn_config"] = {
        "full_attn_layers": [2],
        "kda_layers": [1, 3],
        "head_dim": 6,
        "num_heads": 2,
        "short_conv_kernel_size": 4,
    }
    config |= {"first_k_dense_replace": 1, "moe_layer_freq": 1, "mla_use_nope": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = torch.randint(0, VOCAB, (2, 19))
    with torch.no_grad():
        logits = Checkpoint.open(folder).model()(text)[0]
        torch.testing.assert_close(logits, peer(text, use_cache=False).logits, rtol=0, atol=1e-4)

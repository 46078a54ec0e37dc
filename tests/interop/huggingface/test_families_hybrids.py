"""Falcon Mamba, and models of Mamba layers beside attention, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.published import Config, UnsupportedModel
from tests.interop.huggingface.families import check_family
from tests.interop.huggingface.models import VOCAB, published

FALCON_MAMBA: dict[str, Any] = {"num_hidden_layers": 2, "state_size": 5}
ATTENTION: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40}
MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_state": 5}
BAMBA = ATTENTION | MAMBA2 | {"num_hidden_layers": 3, "attn_layer_indices": [1]}
GRANITE = ATTENTION | MAMBA2 | {"shared_intermediate_size": 28, "num_hidden_layers": 3}
GRANITE |= {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_local_experts": 0}
SCALES = {"embedding_multiplier": 3.0, "logits_scaling": 2.5, "residual_multiplier": 0.4, "attention_multiplier": 0.2}
FALCON_H1 = ATTENTION | {"num_hidden_layers": 2, "mamba_d_ssm": 36, "mamba_n_heads": 6, "mamba_d_state": 5}
FALCON_SCALES = {
    "embedding_multiplier": 2.0,
    "lm_head_multiplier": 0.3,
    "key_multiplier": 0.6,
    "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.7,
    "ssm_in_multiplier": 0.8,
    "ssm_out_multiplier": 1.5,
    "ssm_multipliers": [0.7, 1.3, 0.5, 2.0, 1.1],
    "mlp_multipliers": [0.6, 1.7],
}
NEMOTRON = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 40,
    "mamba_num_heads": 6,
    "mamba_head_dim": 5,
    "n_groups": 2,
    "ssm_state_size": 7,
}
M, A, F, E = "linear_attention", "full_attention", "mlp", "moe"
EXPERTS = {"n_routed_experts": 5, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 24}
JAMBA: dict[str, Any] = ATTENTION | {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2}
JAMBA |= {"num_experts": 6, "mamba_d_state": 5}

CASES = {
    "falcon mamba": ("FalconMamba", FALCON_MAMBA),
    "falcon mamba, biases": (
        "FalconMamba",
        FALCON_MAMBA | {"use_bias": True, "time_step_rank": 3, "mixer_rms_eps": 1e-2},
    ),
    "falcon mamba, untied": (
        "FalconMamba",
        {"num_hidden_layers": 3, "tie_word_embeddings": False, "expand": 1, "conv_kernel": 3, "use_conv_bias": False},
    ),
    "bamba": ("Bamba", BAMBA),
    "bamba, biases, groups, tied": (
        "Bamba",
        BAMBA
        | {"mamba_n_groups": 2, "mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True}
        | {"tie_word_embeddings": True, "attn_layer_indices": [0, 2], "time_step_limit": (0.6, 0.9)},
    ),
    "bamba, all of its positions turned": (
        "Bamba",
        BAMBA
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}}
        | {"mamba_expand": 3, "mamba_n_heads": 4, "mamba_conv_bias": False, "mamba_d_conv": 3},
    ),
    "bamba without attention": ("Bamba", BAMBA | {"attn_layer_indices": None, "rms_norm_eps": 1e-3}),
    "granite 4": ("GraniteMoeHybrid", GRANITE | SCALES),
    "granite 4, rotary": (
        "GraniteMoeHybrid",
        GRANITE | {"position_embedding_type": "rope", "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "granite 4, biases, groups": (
        "GraniteMoeHybrid",
        GRANITE
        | SCALES
        | {"mamba_n_groups": 4, "mamba_proj_bias": True, "attention_bias": True, "position_embedding_type": "nope"}
        | {"layer_types": None, "mamba_d_head": 16},
    ),
    "granite 4, experts": (
        "GraniteMoeHybrid",
        GRANITE | SCALES | {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 12},
    ),
    "granite 4, experts, rotary": (
        "GraniteMoeHybrid",
        GRANITE
        | {"num_local_experts": 4, "num_experts_per_tok": 3, "intermediate_size": 12, "position_embedding_type": "rope"}
        | {"tie_word_embeddings": True, "layer_types": [A, M, M]},
    ),
    "falcon h1": ("FalconH1", FALCON_H1 | FALCON_SCALES),
    "falcon h1, norm before the gate": (
        "FalconH1",
        FALCON_H1
        | FALCON_SCALES
        | {"mamba_rms_norm": True, "mamba_n_groups": 3, "mamba_proj_bias": True, "mlp_bias": True}
        | {"tie_word_embeddings": True, "attention_bias": True},
    ),
    "falcon h1, norm after the gate": (
        "FalconH1",
        FALCON_H1
        | {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "projectors_bias": True, "mamba_n_groups": 2}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e11}, "mamba_conv_bias": False},
    ),
    "falcon h1, channels by expand": (
        "FalconH1",
        FALCON_H1
        | {"mamba_d_ssm": None, "mamba_expand": 1, "mamba_n_heads": 4, "num_key_value_heads": 4}
        | {"head_dim": 6, "time_step_limit": (0.7, 1.2)},
    ),
    "nemotron h": ("NemotronH", NEMOTRON | {"layers_block_type": [M, F, A, F, M]}),
    "nemotron h, biases": (
        "NemotronH",
        NEMOTRON | {"layers_block_type": [A, M, M, F], "use_bias": True, "mlp_bias": True, "time_step_min": 0.6},
    ),
    "nemotron h, experts": ("NemotronH", NEMOTRON | EXPERTS | {"layers_block_type": [M, E, A, E]}),
    "nemotron h, experts in groups": (
        "NemotronH",
        NEMOTRON
        | EXPERTS
        | {"layers_block_type": [E, M, F, E], "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "mlp_bias": True}
        | {"num_experts_per_tok": 3, "routed_scaling_factor": 2.5},
    ),
    "nemotron h, experts of a latent": (
        "NemotronH",
        NEMOTRON
        | EXPERTS
        | {"layers_block_type": [M, E], "moe_latent_size": 20, "norm_topk_prob": False, "num_experts_per_tok": 1},
    ),
    "jamba": ("Jamba", JAMBA),
    "jamba, biases": (
        "Jamba",
        JAMBA
        | {"mamba_proj_bias": True, "mamba_conv_bias": False, "mamba_dt_rank": 3, "expert_layer_offset": 0}
        | {"attn_layer_period": 2, "attn_layer_offset": 0, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    ),
    "jamba without experts": ("Jamba", JAMBA | {"num_experts": 1, "mamba_expand": 1, "mamba_d_conv": 3}),
    "jamba of experts": (
        "Jamba",
        JAMBA
        | {"expert_layer_period": 1, "expert_layer_offset": 0, "num_experts_per_tok": 4, "rms_norm_eps": 1e-3}
        | {"num_key_value_heads": 1},
    ),
    "nemotron h, silu": (
        "NemotronH",
        NEMOTRON
        | {"layers_block_type": [M, F, M], "mlp_hidden_act": "silu", "use_conv_bias": False}
        | {"n_groups": 3, "conv_kernel": 2, "layer_norm_epsilon": 1e-3},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    kind, options = CASES[case]
    check_family(tmp_path, kind, **options)


REFUSED: list[tuple[str, str, Any]] = [
    ("FalconMamba", "hidden_act", "gelu"),
    ("Bamba", "hidden_act", "gelu"),
    ("Bamba", "attention_dropout", 0.1),
    ("Bamba", "z_loss_coefficient", 0.01),
    ("Bamba", "partial_rotary_factor", 0.25),
    ("Bamba", "mamba_d_head", 12),
    ("GraniteMoeHybrid", "hidden_act", "relu"),
    ("GraniteMoeHybrid", "layer_types", ["linear_attention", "sliding_attention", "full_attention"]),
    ("GraniteMoeHybrid", "output_router_logits", True),
    ("FalconH1", "attention_dropout", 0.1),
    ("FalconH1", "mamba_d_head", 12),
    ("Jamba", "hidden_act", "gelu"),
    ("Jamba", "output_router_logits", True),
    ("Jamba", "attention_dropout", 0.1),
    ("NemotronH", "mlp_hidden_act", "tanh"),
    ("NemotronH", "mamba_hidden_act", "relu"),
    ("NemotronH", "mamba_proj_bias", True),
    ("NemotronH", "sliding_window", 128),
    ("NemotronH", "attention_bias", True),
    ("NemotronH", "hidden_dropout", 0.1),
    ("NemotronH", "layers_block_type", ["linear_attention", "retention"]),
    ("NemotronH", "hybrid_override_pattern", "M-M*X"),
]


@pytest.mark.parametrize(("kind", "key", "value"), REFUSED)
def test_what_our_learners_lack_is_refused_by_name(kind: str, key: str, value: Any) -> None:
    given = next(options for name, options in CASES.values() if name == kind)
    values = {"architectures": [f"{kind}ForCausalLM"], "hidden_size": 64, "vocab_size": VOCAB, **given, key: value}
    if key == "hybrid_override_pattern":
        del values["layers_block_type"]
    with pytest.raises(UnsupportedModel, match=f"config.json: {key} is "):
        plan(Config(Path("config.json"), values))


def test_older_configs_say_the_same_by_other_names(tmp_path: Path) -> None:
    kind, options = CASES["nemotron h"]
    published(tmp_path, kind, **options)
    config = json.loads((tmp_path / "config.json").read_text())
    expected = plan(Config(tmp_path, config)).model(tie=False)
    for now, older in {
        "n_groups": "mamba_n_groups",
        "conv_kernel": "mamba_d_conv",
        "time_step_min": "mamba_dt_min",
    }.items():
        config[older] = config.pop(now)
    del config["layers_block_type"]
    assert plan(Config(tmp_path, config | {"hybrid_override_pattern": "M-*-M"})).model(tie=False) == expected
    granite = GRANITE | {"architectures": ["GraniteMoeHybridForCausalLM"], "hidden_size": 64, "vocab_size": VOCAB}
    assert plan(Config(tmp_path, granite)).model(tie=False) == plan(
        Config(tmp_path, granite | {"layer_types": ["mamba", "attention", "mamba"]})
    ).model(tie=False)

"""DeepSeek-V3, GLM-4.5, OLMoE and Granite-MoE against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.interop.converted import ConvertedModel
from synthe_core.interop.huggingface.model import HuggingFaceModel
from synthe_core.interop.huggingface.published import UnsupportedModel
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.families import LOGITS, assert_close, check_family
from tests.interop.huggingface.models import published, tokens

SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 56, "num_hidden_layers": 3}
CHOICE = {"moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 3, "first_k_dense_replace": 1}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 20, "q_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}  # fmt: skip
OLMOE = SIZES | {"pad_token_id": None}  # the gradient of a padding token's embedding would be left out
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0,
    "mscale_all_dim": 0.7,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-v3": ("DeepseekV3", SIZES | CHOICE | LATENT | GROUPS),
    "deepseek-v3, no rank of queries, tied": (
        "DeepseekV3",
        SIZES | CHOICE | LATENT | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "tie_word_embeddings": True}
        | {"attention_bias": True, "rope_interleave": False, "norm_topk_prob": False},
    ),
    "deepseek-v3, stretched positions, two shared experts": (
        "DeepseekV3",
        SIZES | CHOICE | LATENT | GROUPS | {"rope_parameters": YARN, "n_shared_experts": 2, "v_head_dim": 15}
        | {"first_k_dense_replace": 2, "max_position_embeddings": 128},
    ),
    "glm-4.5": ("Glm4Moe", SIZES | CHOICE | {"head_dim": 16, "use_qk_norm": True}),
    "glm-4.5, biases, groups, tied": (
        "Glm4Moe",
        SIZES | CHOICE | GROUPS | {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "glm-4.5, every layer sparse": (
        "Glm4Moe",
        SIZES | CHOICE | {"head_dim": 10, "first_k_dense_replace": 0, "n_shared_experts": 2, "norm_topk_prob": False}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
    ),
    "olmoe": ("Olmoe", OLMOE | {"num_experts": 6, "num_experts_per_tok": 2}),
    "olmoe, biases, tied": (
        "Olmoe",
        OLMOE | {"num_experts": 5, "num_experts_per_tok": 3, "attention_bias": True, "tie_word_embeddings": True}
        | {"norm_topk_prob": True},
    ),
    "olmoe, as many key heads": (
        "Olmoe", OLMOE | {"num_experts": 4, "num_experts_per_tok": 1, "num_key_value_heads": 4, "rms_norm_eps": 1e-3}
    ),
    "granite-moe": ("GraniteMoe", SIZES | {"num_local_experts": 5, "attention_multiplier": 0.2}),
    "granite-moe, scaled, tied": (
        "GraniteMoe",
        SIZES | {"num_local_experts": 4, "embedding_multiplier": 3.0, "logits_scaling": 2.0}
        | {"residual_multiplier": 0.3, "attention_multiplier": 0.3, "tie_word_embeddings": True},
    ),
    "granite-moe, biases": (
        "GraniteMoe",
        SIZES | {"num_local_experts": 3, "num_experts_per_tok": 3, "attention_bias": True, "num_key_value_heads": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    kind, options = CASES[case]
    check_family(tmp_path, kind, **options)


@pytest.mark.parametrize("kind", ["DeepseekV3", "Glm4Moe"])
def test_the_correction_bias_decides_the_choice(tmp_path: Path, kind: str) -> None:
    """It is no parameter, so that the other test leaves it at 0; and further layers are ignored."""
    options = SIZES | CHOICE | GROUPS | (LATENT if kind == "DeepseekV3" else {"head_dim": 16})
    peer = published(tmp_path, kind, **options)
    before = peer(tokens()).logits
    for name, buffer in peer.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(-0.4, 0.4, len(buffer))[torch.randperm(len(buffer))])
    peer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"model.layers.3.eh_proj.weight": torch.ones(3)}, path, {"format": "pt"})
    with torch.no_grad():
        expected = peer(tokens()).logits
        assert (expected - before).abs().max() > 1e-2
        assert_close(Checkpoint.open(tmp_path).model()(tokens())[0], expected, LOGITS, "the logits of a text")


def test_a_bound_after_the_norm_is_refused(tmp_path: Path) -> None:
    published(tmp_path, "Olmoe", **SIZES, num_experts=4, num_experts_per_tok=2, clip_qkv=0.5)
    with pytest.raises(UnsupportedModel, match=r"clip_qkv is 0\.5"):
        ConvertedModel(HuggingFaceModel(tmp_path))

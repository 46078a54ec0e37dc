"""Random models with attention and another memory as GGUF files by llama.cpp's conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthe_core.errors import InputError
from synthe_core.interop.gguf.file import GgufFile
from synthe_core.interop.gguf.model import GgufModel

pytest.importorskip("transformers")
pytest.importorskip("gguf")
from tests.interop.gguf import conventions as by
from tests.interop.gguf import hybrid_conventions as hybrid
from tests.interop.gguf.families import check_logits, check_tensors, random

DELTA = {
    "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 8,
    "linear_value_head_dim": 12, "num_hidden_layers": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
           "shared_expert_intermediate_size": 40}  # fmt: skip


def deltas(kind: str, architecture: str, change: Any, path: Path, more: Any = None, **options: Any) -> tuple[Any, Path]:
    model = random(kind, **DELTA, **options)
    config = model.config
    metadata = by.common(config) if hasattr(config, "intermediate_size") else by.common(config, feed_forward_length=0)
    metadata |= {
        "attention__key_length": 16, "attention__value_length": 16, "rope__dimension_count": 4, "ssm__conv_kernel": 4,
        "ssm__state_size": 8, "ssm__group_count": 2, "ssm__time_step_rank": 6,
        "ssm__inner_size": 6 * DELTA["linear_value_head_dim"], "full_attention_interval": 4,
    }  # fmt: skip
    if hasattr(config, "num_experts"):
        metadata |= {
            "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24,
            "expert_shared_feed_forward_length": 40,
        }  # fmt: skip
    return model, by.write(path, architecture, model, change, **metadata | (more or {}))


def qwen35(path: Path, **options: Any) -> tuple[Any, Path]:
    sections = {"rope__dimension_sections": [11, 11, 10, 0]}
    return deltas("Qwen3_5Text", "qwen35", hybrid.tiled_values, path, sections, **options)


SSM = {"ssm__conv_kernel": 4, "ssm__state_size": 16, "ssm__group_count": 2, "ssm__time_step_rank": 8}
GRANITE = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_expand": 2,
    "mamba_chunk_size": 16, "shared_intermediate_size": 40, "layer_types": ["mamba", "attention", "mamba"],
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
}  # fmt: skip


def granite(path: Path, more: Any = None, **options: Any) -> tuple[Any, Path]:
    model = random("GraniteMoeHybrid", **GRANITE, num_experts_per_tok=2, **options)
    config = model.config
    metadata = by.common(config, **SSM, ssm__inner_size=128) | {
        "attention__head_count_kv": [0, 2, 0], "rope__dimension_count": 16, "expert_count": config.num_local_experts,
        "expert_used_count": 2, "expert_shared_feed_forward_length": 40, "attention__scale": 0.2,
        "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.0,
        "rope__scaling__finetuned": config.position_embedding_type == "rope",
    }  # fmt: skip
    return model, by.write(path, "granitehybrid", model, hybrid.granite, **metadata | (more or {}))


def nemotron(path: Path, kinds: list[str], more: Any = None, **options: Any) -> tuple[Any, Path]:
    model = random(
        "NemotronH", layers_block_type=kinds, head_dim=12, mamba_num_heads=8, mamba_head_dim=8, n_groups=2,
        ssm_state_size=16, chunk_size=16, n_routed_experts=4, moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=40, **options,
    )  # fmt: skip
    sparse, config = "moe" in kinds, model.config
    metadata = by.common(config, **SSM, ssm__inner_size=64) | {
        "attention__key_length": 12, "attention__value_length": 12,
        "attention__head_count_kv": [2 if kind == "full_attention" else 0 for kind in kinds],
        "feed_forward_length": [(24 if sparse else 80) if kind in ("mlp", "moe") else 0 for kind in kinds],
    }  # fmt: skip
    if sparse:
        metadata |= {
            "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24, "expert_shared_count": 1,
            "expert_shared_feed_forward_length": 40, "expert_weights_norm": config.norm_topk_prob,
            "expert_weights_scale": float(config.routed_scaling_factor), "expert_group_count": config.n_group,
        }  # fmt: skip
        metadata |= {"moe_latent_size": config.moe_latent_size} if config.moe_latent_size else {}
    return model, by.write(path, f"nemotron_h{'_moe' * sparse}", model, hybrid.Nemotron(), **metadata | (more or {}))


M, A = "linear_attention", "full_attention"
CASES: dict[str, Any] = {
    "granitehybrid": lambda path: granite(path, num_local_experts=0),
    "granitehybrid, experts": lambda path: granite(path, num_local_experts=4),
    "granitehybrid, tied": lambda path: granite(path, num_local_experts=0, tie_word_embeddings=True),
    "granitehybrid, positions": lambda path: granite(path, num_local_experts=0, position_embedding_type="rope"),
    "nemotron_h": lambda path: nemotron(path, [M, "mlp", A, "mlp", M]),
    "nemotron_h, biases": lambda path: nemotron(path, [M, A, "mlp"], mlp_bias=True, use_conv_bias=False),
    "nemotron_h_moe": lambda path: nemotron(path, [M, "moe", A, "moe", M], routed_scaling_factor=2.5),
    "nemotron_h_moe, latent": lambda path: nemotron(
        path, [M, "moe", A, "moe", M], moe_latent_size=32, norm_topk_prob=False
    ),
    "qwen3next": lambda path: deltas("Qwen3Next", "qwen3next", hybrid.SparseGatedDeltas(), path, **EXPERTS),
    "qwen35": qwen35,
    "qwen35, tied": lambda path: qwen35(path, tie_word_embeddings=True),
    "qwen35moe": lambda path: deltas(
        "Qwen3_5MoeText", "qwen35moe", hybrid.SparseGatedDeltas(hybrid.tiled_values), path, **EXPERTS
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_model_in_a_file_is_that_of_transformers(tmp_path: Path, case: str) -> None:
    model, path = CASES[case](tmp_path / "model.gguf")
    check_tensors(model, path, tolerance=2e-6)
    check_logits(model, path)


def test_older_files_of_qwen3_next_have_one_matrix_for_queries_keys_values_and_gates(tmp_path: Path) -> None:
    class Together(hybrid.SparseGatedDeltas):
        def __call__(self, config: Any, name: str, tensor: Any) -> Any:
            return tensor if "in_proj_qkvz" in name else super().__call__(config, name, tensor)

    model, path = deltas("Qwen3Next", "qwen3next", Together(), tmp_path / "model.gguf", **EXPERTS)
    assert "blk.0.ssm_in.weight" in GgufModel(path).file
    check_tensors(model, path, tolerance=2e-6)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    model, path = qwen35(tmp_path / "model.gguf")
    names = set(GgufModel(path))

    def change(config: Any, name: str, tensor: Any) -> Any:
        made = hybrid.tiled_values(config, name, tensor)
        return {name: tensor + 1, "blk.4.nextn.eh_proj.weight": tensor} if name == "model.norm.weight" else made

    more = {"block_count": 5, "nextn_predict_layers": 1}
    model, path = deltas("Qwen3_5Text", "qwen35", change, tmp_path / "further.gguf", more)
    assert set(GgufModel(path)) == names
    check_logits(model, path)
    _, path = deltas("Qwen3_5Text", "qwen35", change, tmp_path / "wrong.gguf", more | {"nextn_predict_layers": 5})
    with pytest.raises(InputError, match="nextn_predict_layers"):
        GgufModel(path)


@pytest.mark.parametrize("architecture", ["qwen35", "granitehybrid", "nemotron_h"])
def test_more_layers_than_tensors_are_refused_before_they_are_counted(tmp_path: Path, architecture: str) -> None:
    made = {"qwen35": lambda path, more: deltas("Qwen3_5Text", "qwen35", hybrid.tiled_values, path, more),
            "granitehybrid": lambda path, more: granite(path, more, num_local_experts=0),
            "nemotron_h": lambda path, more: nemotron(path, [M, "mlp", A], more)}  # fmt: skip
    _, path = made[architecture](tmp_path / "model.gguf", {"block_count": 2**32 - 1})
    with pytest.raises(InputError, match="the number of tensors"):
        GgufModel(path)


def test_value_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    _, path = deltas("Qwen3_5Text", "qwen35", hybrid.tiled_values, tmp_path / "model.gguf", {"ssm__time_step_rank": 5})
    with pytest.raises(InputError, match="time_step_rank"):
        GgufModel(path)


ODD: list[Any] = [None, "x", -1, 0, 5, 2**32 - 1, 0.5, float("nan"), True, np.array([1, 2]), np.array([0] * 3), ["a"]]


@pytest.mark.parametrize("case", ["qwen3next", "qwen35", "granitehybrid, experts", "nemotron_h", "nemotron_h_moe"])
def test_a_value_of_a_wrong_kind_or_size_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    _, path = CASES[case](tmp_path / "model.gguf")
    whole = GgufFile(path)
    refused = 0
    for key in whole.metadata:
        for value in ODD if not key.startswith("general.") else ():
            values = {name: each for name, each in whole.metadata.items() if name != key}
            monkeypatch.setattr(whole, "metadata", values if value is None else values | {key: value})
            monkeypatch.setattr("synthe_core.interop.gguf.model.GgufFile", lambda _: whole)
            try:
                read = GgufModel(path)
                for name in read:
                    read.shape(name)
            except InputError as error:
                assert "\n" not in error.message
                refused += 1
            monkeypatch.undo()
    assert refused > len(whole.metadata)


def test_a_share_of_rotated_channels_in_granite_is_refused(tmp_path: Path) -> None:
    """So it is in Bamba, whose files have Granite's architecture."""
    more = {"rope__scaling__finetuned": True, "rope__dimension_count": 8}
    _, path = granite(tmp_path / "model.gguf", more, num_local_experts=0)
    with pytest.raises(InputError, match="dimension_count"):
        GgufModel(path)

"""Random models with attention and another memory as GGUF files by llama.cpp's conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthe_core.errors import InputError
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
        "ssm__state_size": 8, "ssm__group_count": 2, "ssm__time_step_rank": 6, "ssm__inner_size": 72,
        "full_attention_interval": 4,
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


CASES: dict[str, Any] = {
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


def test_value_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    _, path = deltas("Qwen3_5Text", "qwen35", hybrid.tiled_values, tmp_path / "model.gguf", {"ssm__time_step_rank": 5})
    with pytest.raises(InputError, match="time_step_rank"):
        GgufModel(path)

"""Qwen's hybrids and the mixtures of experts against transformers."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.errors import InputError
from synthe_core.interop.converted import ConvertedModel
from synthe_core.interop.huggingface.model import HuggingFaceModel
from synthe_core.interop.huggingface.published import UnsupportedModel
from synthe_core.interop.load import load_checkpoint
from synthe_core.interop.source import huggingface
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.families import LOGITS, assert_close, check_family
from tests.interop.huggingface.models import VOCAB, WIDTH, published, tokens

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
}  # fmt: skip
ODD = {
    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "linear_num_key_heads": 3,
    "linear_num_value_heads": 3, "linear_key_head_dim": 7, "linear_value_head_dim": 5, "linear_conv_kernel_dim": 3,
}  # fmt: skip
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20}
HYBRID = HEADS | DELTA | {"intermediate_size": 56, "num_hidden_layers": 4}
PLAIN = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 56, "num_hidden_layers": 3}
MROPE = {
    "rope_type": "default", "rope_theta": 3e5, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
    "mrope_interleaved": True,
}  # fmt: skip
KINDS = ["full_attention", "linear_attention", "full_attention"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-next": ("Qwen3Next", HYBRID | MOE),
    "qwen3-next, dense and sparse layers, biases": (
        "Qwen3Next",
        HYBRID | MOE | {"mlp_only_layers": [0], "decoder_sparse_step": 2, "full_attention_interval": 2}
        | {"attention_bias": True, "norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    "qwen3-next, odd sizes": (
        "Qwen3Next",
        HYBRID | MOE | ODD | {"layer_types": KINDS, "num_hidden_layers": 3, "num_experts_per_tok": 1}
        | {"norm_topk_prob": False}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.6}},
    ),
    "qwen3.5": ("Qwen3_5", HYBRID),
    "qwen3.5, positions on three axes, tied": (
        "Qwen3_5",
        HYBRID | {"rope_parameters": MROPE, "tie_word_embeddings": True, "linear_num_value_heads": 6},
    ),
    "qwen3.5, odd sizes, biases": (
        "Qwen3_5",
        HYBRID | ODD | {"layer_types": KINDS, "num_hidden_layers": 3, "attention_bias": True, "rms_norm_eps": 1e-3}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
    ),
    "qwen3.5-moe": ("Qwen3_5Moe", HYBRID | MOE),
    "qwen3.5-moe, tied, one layer in two": (
        "Qwen3_5Moe", HYBRID | MOE | {"full_attention_interval": 2, "tie_word_embeddings": True, "attention_bias": True}
    ),
    "qwen3.5-moe, odd sizes": (
        "Qwen3_5Moe",
        HYBRID | MOE | ODD | {"layer_types": KINDS, "num_hidden_layers": 3, "num_experts_per_tok": 3}
        | {"rope_parameters": MROPE | {"partial_rotary_factor": 0.8}},
    ),
    "qwen3-moe": ("Qwen3Moe", PLAIN | MOE),
    "qwen3-moe, dense and sparse layers, biases": (
        "Qwen3Moe",
        PLAIN | MOE | {"mlp_only_layers": [1], "norm_topk_prob": True, "attention_bias": True, "head_dim": 12},
    ),
    "qwen3-moe, windows, tied": (
        "Qwen3Moe",
        PLAIN | MOE | {"use_sliding_window": True, "sliding_window": 9, "decoder_sparse_step": 2}
        | {"tie_word_embeddings": True, "num_experts_per_tok": 1},
    ),
    "qwen2-moe": ("Qwen2Moe", PLAIN | MOE),
    "qwen2-moe, windows, without biases": (
        "Qwen2Moe",
        PLAIN | MOE | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2, "qkv_bias": False},
    ),
    "qwen2-moe, dense and sparse layers, tied": (
        "Qwen2Moe",
        PLAIN | MOE | {"mlp_only_layers": [2], "norm_topk_prob": True, "tie_word_embeddings": True},
    ),
    "mixtral": ("Mixtral", PLAIN | {"num_local_experts": 4}),
    "mixtral, window, tied": (
        "Mixtral",
        PLAIN | {"num_local_experts": 5, "sliding_window": 9, "tie_word_embeddings": True, "head_dim": 10},
    ),
    "mixtral, as many key heads": (
        "Mixtral", PLAIN | {"num_local_experts": 3, "num_experts_per_tok": 3, "num_key_value_heads": 4}
    ),
}  # fmt: skip


VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": WIDTH}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    kind, options = CASES[case]
    check_family(tmp_path, kind, **options)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["Qwen3_5", "Qwen3_5Moe"])
def test_the_language_model_of_a_multimodal_one(tmp_path: Path, kind: str, tie: bool) -> None:
    """Its names, its positions on three axes, and what is left out."""
    transformers = pytest.importorskip("transformers")
    text = HYBRID | {"vocab_size": VOCAB, "hidden_size": WIDTH, "rope_parameters": MROPE, "tie_word_embeddings": tie}
    text |= MOE if kind == "Qwen3_5Moe" else {}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=VISION, tie_word_embeddings=tie)
    torch.manual_seed(0)
    peer = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    peer.save_pretrained(tmp_path)
    add_tensor(tmp_path, "mtp.layers.0.input_layernorm.weight", torch.ones(3))
    source = huggingface(tmp_path)
    assert [notice.message for notice in source.model.notices][:1] == [
        "a multimodal model: its language model is used, and images and videos are not"
    ]
    with pytest.warns(UserWarning, match="m: a multimodal model"), suppress(InputError):  # it has no tokenizer
        load_checkpoint(Checkpoint.open(tmp_path), "m")
    ids = tokens()
    with torch.no_grad():
        assert_close(Checkpoint.open(tmp_path).model()(ids)[0], peer(ids).logits, LOGITS, "the logits of a text")
    assert source.model.context == config.text_config.max_position_embeddings


@pytest.mark.parametrize("kind", ["Qwen3_5Moe", "Mixtral"])
def test_experts_in_one_tensor_are_those_in_tensors_of_their_own(tmp_path: Path, kind: str) -> None:
    options = HYBRID | MOE if kind == "Qwen3_5Moe" else PLAIN | {"num_local_experts": 4}
    peer = published(tmp_path / "apart", kind, **options)
    fused = {name: tensor.contiguous() for name, tensor in peer.state_dict().items()}
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in fused)
    (tmp_path / "fused").mkdir()
    shutil.copy(tmp_path / "apart" / "config.json", tmp_path / "fused")
    save_file(fused, tmp_path / "fused" / "model.safetensors")
    one, other = (huggingface(tmp_path / name).model.tensors for name in ("apart", "fused"))
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("Qwen3Next", HYBRID | MOE | {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("Qwen3_5", HYBRID | {"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim is 1"),
        ("Qwen3Moe", PLAIN | MOE | {"num_experts": 1, "num_experts_per_tok": 1}, "num_experts is 1"),
        (
            "Qwen3_5",
            HYBRID | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.2}},
            "partial_rotary_factor is 0.2",
        ),
    ],
    ids=str,
)
def test_what_is_not_expressed_is_refused_by_name(
    tmp_path: Path, kind: str, options: dict[str, Any], said: str
) -> None:
    published(tmp_path, kind, **options)
    with pytest.raises(UnsupportedModel, match=said):
        ConvertedModel(HuggingFaceModel(tmp_path))


def add_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: tensor}, path, {"format": "pt"})

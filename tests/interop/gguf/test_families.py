"""Random models of transformers as GGUF files by llama.cpp's conventions: our reader gives the same tensors and config,
and so the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.interop.gguf.model import GgufModel

pytest.importorskip("transformers")
pytest.importorskip("gguf")
from tests.interop.gguf import conventions as by
from tests.interop.gguf.families import check_logits, check_tensors, random

LONG = {"rope_type": "longrope", "rope_theta": 10_000.0, "long_factor": [1.5] * 4, "short_factor": [1.25] * 4,
        "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "original_max_position_embeddings": 32}


def llama_like(kind: str, architecture: str, change: Any = by.as_it_is, **options: Any) -> Any:
    def made(path: Path) -> tuple[Any, Path]:
        model = random(kind, **options)
        config = model.config
        metadata = by.common(config, **(by.heads(config) if getattr(config, "head_dim", None) else {}))
        metadata |= _extra(config)
        return model, by.write(path, architecture, model, change() if isinstance(change, type) else change, **metadata)

    return made


def granite_moe(path: Path, shared: int = 0, **options: Any) -> tuple[Any, Path]:
    """With a shared expert it is Granite 4 with attention alone, as GraniteMoeShared has the same layers."""
    scales = {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "logits_scaling": 2.0}
    scales["residual_multiplier"] = 0.5
    more = {"shared_intermediate_size": shared, "layer_types": ["attention"] * 3, "position_embedding_type": "rope",
            "mamba_n_heads": 64, "mamba_d_head": 2}  # fmt: skip
    kind = "GraniteMoeHybrid" if shared else "GraniteMoe"
    model = random(kind, num_local_experts=4, num_experts_per_tok=2, **scales, **(more if shared else {}), **options)
    metadata = by.common(model.config, rope__dimension_count=16, expert_count=4, **_extra(model.config))
    metadata |= {"expert_shared_feed_forward_length": shared} if shared else {}
    return model, by.write(path, "granitemoe", model, by.granite_moe, **metadata)


def _extra(config: Any) -> dict[str, Any]:
    """What some architectures have beside."""
    named = {
        "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
        "sliding_window": "attention__sliding_window", "attention_multiplier": "attention__scale",
        "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale", "num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
        "moe_intermediate_size": "expert_feed_forward_length",
    }  # fmt: skip
    values = {theirs: getattr(config, ours, None) for ours, theirs in named.items()}
    values = {key: value for key, value in values.items() if value is not None}
    if config.model_type == "gemma3_text":
        full = config.rope_parameters["full_attention"]
        values["rope__freq_base"] = full["rope_theta"]
        if full["rope_type"] == "linear":
            values |= {"rope__scaling__type": "linear", "rope__scaling__factor": float(full["factor"])}
    if config.model_type == "olmo3":
        values["attention__sliding_window_pattern"] = [kind == "sliding_attention" for kind in config.layer_types]
    if (config.rope_parameters or {}).get("rope_type") == "yarn":
        values |= {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 32,
        }
    return values


def phi3(path: Path, **options: Any) -> tuple[Any, Path]:
    model = random("Phi3", **options)
    config, size = model.config, model.config.hidden_size // model.config.num_attention_heads
    scaling = config.rope_parameters
    turned = int(size * scaling.get("partial_rotary_factor", 1.0))
    metadata = by.common(config, rope__dimension_count=turned, attention__sliding_window=config.sliding_window or 0)
    metadata["rope__scaling__original_context_length"] = config.original_max_position_embeddings

    def change(config: Any, name: str, tensor: torch.Tensor) -> Any:
        factors = {
            f"rope_factors_{kind}.weight": torch.tensor(scaling[f"{kind}_factor"])
            for kind in ("long", "short")
            if f"{kind}_factor" in scaling
        }
        return {name: tensor} | (factors if name == "model.norm.weight" else {})

    return model, by.write(path, "phi3", model, change, **metadata)


def gpt2(path: Path) -> tuple[Any, Path]:
    model = random("GPT2", n_embd=64, n_layer=3, n_head=4, n_positions=128, n_inner=None)
    metadata = {
        "block_count": 3, "context_length": 128, "embedding_length": 64, "feed_forward_length": 256,
        "attention__head_count": 4, "attention__layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    return model, by.write(path, "gpt2", model, by.transposed, **metadata)


def neox(path: Path, **options: Any) -> tuple[Any, Path]:
    model = random("GPTNeoX", **options)
    metadata = {
        "block_count": 3, "context_length": 128, "embedding_length": 64, "feed_forward_length": 80,
        "attention__head_count": 4, "attention__layer_norm_epsilon": 1e-5, "rope__dimension_count": 4,
        "use_parallel_residual": model.config.use_parallel_residual,
    }  # fmt: skip
    return model, by.write(path, "gptneox", model, by.separate_heads, **metadata)


def falcon_h1(path: Path, **options: Any) -> tuple[Any, Path]:
    model = random(
        "FalconH1", mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=16, head_dim=16,
        mamba_norm_before_gate=False, attention_in_multiplier=1.5, attention_out_multiplier=0.75, key_multiplier=0.5,
        embedding_multiplier=2.0, lm_head_multiplier=0.25, ssm_in_multiplier=1.25, ssm_out_multiplier=0.5,
        mlp_multipliers=[0.5, 1.5], ssm_multipliers=[0.5, 0.75, 1.25, 1.5, 2.0], mamba_chunk_size=16, **options,
    )  # fmt: skip
    ssm = {"ssm__time_step_rank": 8, "ssm__inner_size": 64, "ssm__group_count": 2, "ssm__state_size": 16,
           "ssm__conv_kernel": 4}  # fmt: skip
    metadata = by.common(model.config, **by.heads(model.config), **ssm)
    return model, by.write(path, "falcon-h1", model, by.falcon_h1, **metadata)


def lfm2(path: Path) -> tuple[Any, Path]:
    kinds = ["conv", "full_attention", "conv"]
    model = random("Lfm2", layer_types=kinds, block_auto_adjust_ff_dim=False, conv_L_cache=3)
    config = model.config
    metadata = by.common(config, shortconv__l_cache=3)
    metadata |= {"attention__head_count_kv": [0, 2, 0], "attention__layer_norm_rms_epsilon": float(config.norm_eps)}
    return model, by.write(path, "lfm2", model, by.short_convolutions, **metadata)


CASES: dict[str, Any] = {
    "llama": llama_like("Llama", "llama", by.pairs, head_dim=16),
    "llama, yarn": llama_like("Llama", "llama", by.pairs, head_dim=16, rope_parameters=YARN),
    "qwen3moe": llama_like("Qwen3Moe", "qwen3moe", by.Experts, head_dim=16, num_experts=4, num_experts_per_tok=2,
                           moe_intermediate_size=48, norm_topk_prob=True),
    "granite": llama_like("Granite", "granite", by.pairs, attention_multiplier=0.2, embedding_multiplier=3.0,
                          residual_multiplier=0.5, logits_scaling=2.0),
    "granite, untied": llama_like("Granite", "granite", by.pairs, tie_word_embeddings=False),
    "granitemoe": granite_moe,
    "granitemoe, biases": lambda path: granite_moe(path, attention_bias=True, tie_word_embeddings=False),
    "granitemoe, shared": lambda path: granite_moe(path, shared=40),
    "olmo2": llama_like("Olmo2", "olmo2"),
    "olmo3": llama_like("Olmo3", "olmo2", sliding_window=8,
                        layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "gemma2": llama_like("Gemma2", "gemma2", by.norms_and_one, head_dim=16, query_pre_attn_scalar=16, sliding_window=8),
    "gemma3": llama_like("Gemma3Text", "gemma3", by.norms_and_one, head_dim=16, query_pre_attn_scalar=16,
                         sliding_window=8, num_hidden_layers=7),
    "gemma3, scaled": llama_like(
        "Gemma3Text", "gemma3", by.norms_and_one, head_dim=16, query_pre_attn_scalar=16, sliding_window=8,
        num_hidden_layers=7, final_logit_softcapping=3.0,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}),
    "phi3": phi3,
    "phi3, window": lambda path: phi3(path, sliding_window=8),
    "phi3, longrope": lambda path: phi3(path, rope_parameters=LONG, original_max_position_embeddings=64),
    "gpt2": gpt2,
    "gptneox": neox,
    "gptneox, one after the other": lambda path: neox(path, use_parallel_residual=False),
    "falcon-h1": falcon_h1,
    "falcon-h1, norm": lambda path: falcon_h1(path, mamba_rms_norm=True),
    "lfm2": lfm2,
}  # fmt: skip
ROUNDED = ("gemma", "falcon-h1")
"""Whose weights are changed on their way into a file, which rounds them."""


@pytest.mark.parametrize("case", CASES)
def test_the_model_in_a_file_is_that_of_transformers(tmp_path: Path, case: str) -> None:
    model, path = CASES[case](tmp_path / "model.gguf")
    if not case.startswith("falcon-h1"):
        check_tensors(model, path, tolerance=2e-6 if case.startswith(ROUNDED) else 0)
    check_logits(model, path)


def test_experts_of_another_number_are_refused(tmp_path: Path) -> None:
    model = random("Qwen3Moe", head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48)
    metadata = by.common(model.config, **by.heads(model.config)) | _extra(model.config) | {"expert_count": 3}
    with pytest.raises(InputError, match="3 experts by its metadata"):
        GgufModel(by.write(tmp_path / "model.gguf", "qwen3moe", model, by.Experts(), **metadata))

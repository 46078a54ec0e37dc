"""Tiny random models of the architectures that transformers runs for us, one of each kind of cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interop.huggingface.models import add_tokenizer

LENGTH = 64
SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
HEADS = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 96}
EXPERTS = {"num_experts_per_tok": 2}
GATED_DELTA = {"linear_key_head_dim": 12, "linear_value_head_dim": 16, "linear_num_value_heads": 4}
MAMBA2 = {
    **HEADS, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8,
}  # fmt: skip
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
RECURRENT: dict[str, dict[str, Any]] = {
    "Qwen3Next": {
        **HEADS, **GATED_DELTA, **EXPERTS, "head_dim": 16, "linear_num_key_heads": 2, "num_experts": 4,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    },
    "Qwen3_5": {**HEADS, **GATED_DELTA, "head_dim": 16, "linear_num_key_heads": 2},
    "FalconH1": {**MAMBA2, "mamba_d_ssm": 128},
    "Bamba": {**MAMBA2, "attn_layer_indices": [1, 3]},
    "GraniteMoeHybrid": {
        **MAMBA2, **EXPERTS, "layer_types": ["mamba", "attention"] * 2, "num_local_experts": 4,
        "shared_intermediate_size": 48,
    },
    "NemotronH": {
        **HEADS, "head_dim": 16, "layers_block_type": ["mamba", "attention", "mlp", "mamba"], "ssm_state_size": 16,
        "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1, "conv_kernel": 4, "chunk_size": 8,
    },
    "Jamba": {
        **HEADS, **EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8,
        "mamba_dt_rank": 8, "use_mamba_kernels": False,
    },
    "Zamba2": {
        **HEADS, "mamba_d_state": 16, "mamba_ngroups": 1, "n_mamba_heads": 8, "chunk_size": 8, "num_mem_blocks": 1,
        "layers_block_type": ["mamba", "hybrid"] * 2, "adapter_rank": 8, "use_mem_rope": True,
    },
    "Lfm2": {**HEADS, "layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8},
    "OlmoHybrid": {**HEADS, **GATED_DELTA, "linear_num_key_heads": 4, "pad_token_id": 0, "eos_token_id": 1},
    "KimiLinear": {
        **HEADS, **LATENT, **EXPERTS, "num_key_value_heads": 4, "moe_intermediate_size": 32, "num_local_experts": 4,
        "linear_head_dim": 16, "linear_num_heads": 4, "layer_types": ["linear_attention", "full_attention"] * 2,
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
    },
    "MiniMax": {**HEADS, **EXPERTS, "head_dim": 16, "block_size": 8, "num_local_experts": 4},
    "xLSTM": {"hidden_size": 128, "num_blocks": 2, "num_heads": 4, "chunk_size": 8},
    "Mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 8},
    "Mamba2": {
        "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1,
        "chunk_size": 8,
    },
    "FalconMamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 8},
    "Rwkv": {"hidden_size": 64, "num_hidden_layers": 4, "rescale_every": 2, "context_length": LENGTH},
}  # fmt: skip
ATTENTION: dict[str, dict[str, Any]] = {
    "Gemma2": {**HEADS, "head_dim": 16, "sliding_window": 7},
    "Gemma3": {
        **HEADS, "head_dim": 16, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": LENGTH},
    "GPTNeoX": {**SIZES, "intermediate_size": 96},
    "Phi3": {**HEADS, "pad_token_id": 0},
    "Mixtral": {**HEADS, "num_local_experts": 4},
    "DeepseekV3": {
        **HEADS, **LATENT, **EXPERTS, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4,
        "q_lora_rank": 24, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    },
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    "RecurrentGemma": {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1,
        "intermediate_size": 96, "lru_width": 64, "attention_window_size": 7,
    },
}  # fmt: skip
FAMILIES = RECURRENT | ATTENTION | REFUSED
CLASSES = {
    "Qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM"),
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "GPT2": ("GPT2Config", "GPT2LMHeadModel"),
}


def family(path: Path, kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Saves a model of a family, whose every parameter is away from its initial value, and a tokenizer."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    vocab = add_tokenizer(path).get_vocab_size()
    config, model = CLASSES.get(kind, (f"{kind}Config", f"{kind}ForCausalLM"))
    torch.manual_seed(0)
    inner = getattr(transformers, model)(
        getattr(transformers, config)(**{"vocab_size": vocab, **FAMILIES[kind], **options})
    )
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    inner.to(dtype).save_pretrained(path)
    return path

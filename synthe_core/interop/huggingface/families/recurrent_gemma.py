"""RecurrentGemma (Griffin): RG-LRU blocks, attention over a window in some layers, and a GeGLU MLP."""

from __future__ import annotations

from typing import Any

import torch

from synthe_core.interop.huggingface.families.plan import Architectures, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.transformer import rotary
from synthe_core.interop.huggingface.published import Config

RECURRENT, ATTENTION = "recurrent", "attention"
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}
GATES = [f"{gate}_gate_{kind}" for gate in ("input", "recurrent") for kind in ("weight", "bias")]


def recurrent_gemma(config: Config) -> Plan:
    width, heads = config.size("hidden_size"), config.size("num_attention_heads", 10)
    name = config.get("hidden_activation", "gelu_pytorch_tanh")
    if name not in ACTIVATIONS:
        raise config.unsupported("hidden_activation", name, ACTIVATIONS)
    config.only("embeddings_scale_by_sqrt_dim", True)
    config.only("head_dim", width // heads)
    activation = ACTIVATIONS[name]
    recurrence = {
        "type": "rg_lru",
        "heads": heads,
        "channels": config.size("lru_width", width),
        "conv": config.size("conv1d_width", 4),
        "activation": activation,
    }
    bias = config.flag("attention_bias", False)
    attention = {
        "type": "attention",
        "heads": heads,
        "kv_heads": config.size("num_key_value_heads", heads),
        "window": config.size("attention_window_size", 2048),
        "qk_norm": False,
        "bias": "all" if bias else "out",
        **rotary(config, width // heads, 0.5),
    }
    mlp = {"type": "mlp", "hidden": config.size("intermediate_size") // 2, "activation": activation, "bias": True}
    layers = []
    for index, kind in enumerate(_kinds(config)):
        place = f"model.layers.{index}"
        inner = f"{place}.temporal_block"
        if kind == ATTENTION:
            mixer: dict[str, Any] = attention
            tensors = linear("qkv", *(f"{inner}.{name}_proj" for name in "qkv"), bias=bias)
            tensors |= linear("out", f"{inner}.o_proj", bias=True)
        else:
            mixer, tensors = recurrence, {}
            for part in ("linear_x", "linear_y", "linear_out", "conv_1d"):
                tensors |= linear(part, f"{inner}.{part}", bias=True)
            tensors |= {part: origin(f"{inner}.rg_lru.{part}") for part in ("recurrent_param", *GATES)}
        up = (f"{place}.mlp_block.{part}_proj" for part in ("gate", "up"))
        feeding = linear("gate_up", *up, bias=True) | linear("out", f"{place}.mlp_block.down_proj", bias=True)
        layers.append(
            [
                Part(mixer, norm(f"{place}.temporal_pre_norm", zero_centered=True), tensors),
                Part(mlp, norm(f"{place}.channel_pre_norm", zero_centered=True), feeding),
            ]
        )
    scale = float(torch.tensor(width**0.5, dtype=torch.bfloat16))  # as it is published
    return Plan(
        layers,
        width,
        config.size("vocab_size", 256000),
        "model.embed_tokens.weight",
        norm("model.final_norm", zero_centered=True),
        config.number("rms_norm_eps", 1e-6),
        config.flag("tie_word_embeddings", True),
        options={"embedding_scale": scale, "logit_cap": config.number("logits_soft_cap", 30.0)},
    )


def _kinds(config: Config) -> list[str]:
    """The kind of every layer: `block_types`, repeated."""
    count = config.size("num_hidden_layers", 26)
    kinds = config.items("block_types", config.items("_block_types", [RECURRENT, RECURRENT, ATTENTION]))
    for kind in kinds or [None]:
        if kind not in (RECURRENT, ATTENTION):
            raise config.unsupported("block_types", kind, (RECURRENT, ATTENTION))
    return [kinds[index % len(kinds)] for index in range(count)]


ARCHITECTURES: Architectures = {
    "RecurrentGemmaForCausalLM": recurrent_gemma,
}

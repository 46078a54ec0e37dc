"""MiniMax: lightning attention, softmax attention in some layers, and experts; every learner is added to the stream
behind its norm."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.huggingface.families.decoder import transformer_plan
from synthe_core.interop.huggingface.families.mixture import mixtral_experts
from synthe_core.interop.huggingface.families.plan import Architectures, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.rotary import rotary
from synthe_core.interop.huggingface.published import Config

LINEAR, FULL = "linear_attention", "full_attention"
BUFFERS = r"\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)$"  # which follow from config.json


def minimax(config: Config) -> Plan:
    config.only("hidden_act", "silu", "swish")
    config.only("sliding_window", None)
    width, heads, count = (config.size(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    size = config.size("head_dim", max(1, width // heads))
    attention = {
        "type": "attention",
        "heads": heads,
        "kv_heads": config.size("num_key_value_heads", heads),
        "head_size": size,
        "qk_norm": False,
        **rotary(config, base=1e6),
    }
    top_k = config.size("num_experts_per_tok", 2)
    number = config.size("num_local_experts", 8, least=2)
    experts = {
        "type": "experts",
        "experts": number,
        "top_k": top_k,
        "hidden": config.size("intermediate_size", 14336),
        "normalize": True,
        "balance": 0.0,
        "residual": _residual(config, "mlp"),
    }
    layers = []
    for index, kind in enumerate(_kinds(config, count)):
        place = f"model.layers.{index}"
        inner = f"{place}.self_attn"
        if kind == FULL:
            mixer = attention | {"residual": _residual(config, "full_attn")}
            tensors = linear("qkv", *(f"{inner}.{name}_proj" for name in "qkv")) | linear("out", f"{inner}.o_proj")
        else:
            mixer = {"type": "lightning_attention", "heads": heads, "head_size": size}
            mixer |= {"decay_scale": decay_scale(index, count), "residual": _residual(config, "linear_attn")}
            tensors = {"norm": origin(f"{inner}.norm.weight")}
            for name in ("qkv_proj", "output_gate", "out_proj"):
                tensors |= linear(name, f"{inner}.{name}")
        layers.append(
            [
                Part(mixer, norm(f"{place}.input_layernorm"), tensors),
                Part(
                    experts,
                    norm(f"{place}.post_attention_layernorm"),
                    mixtral_experts(f"{place}.block_sparse_moe", number, f"{place}.mlp"),
                ),
            ]
        )
    return transformer_plan(config, layers, eps=config.number("rms_norm_eps", 1e-5), ignored=BUFFERS)


def decay_scale(layer: int, layers: int) -> float:
    """What the logarithms of a layer's decays are multiplied by."""
    return 1 - layer / (layers - 1 + 1e-5) + 1e-5


def _residual(config: Config, kind: str) -> dict[str, Any]:
    alpha, beta = (config.number(f"{kind}_{name}_factor", 1) for name in ("alpha", "beta"))
    return {"norm": "stream", "skip": alpha, "scale": beta}


def _kinds(config: Config, count: int) -> list[Any]:
    kinds = config.items("layer_types", [LINEAR if index % 2 else FULL for index in range(count)], count)
    for kind in kinds:
        if kind not in (LINEAR, FULL):
            raise config.unsupported("layer_types", kind, (LINEAR, FULL))
    return kinds


ARCHITECTURES: Architectures = {
    "MiniMaxForCausalLM": minimax,
}

"""LFM2: gated short convolutions, and attention in some layers."""

from __future__ import annotations

from typing import Any

from synthe_core.interop.huggingface.families.decoder import qkv_rows
from synthe_core.interop.huggingface.families.plan import Architectures, Part, Plan, linear, norm, origin
from synthe_core.interop.huggingface.families.transformer import rotary
from synthe_core.interop.huggingface.published import Config

CONV, ATTENTION = "conv", "full_attention"


def lfm2(config: Config) -> Plan:
    heads, width = config.size("num_attention_heads", 32), config.size("hidden_size")
    eps, bias = config.number("norm_eps", 1e-5), config.flag("conv_bias", False)
    conv = {"type": "gated_conv", "taps": config.size("conv_L_cache", 3, least=2), "bias": bias}
    attention = {
        "type": "attention",
        "heads": heads,
        "kv_heads": config.size("num_key_value_heads", 8),
        "head_size": config.size("head_dim", max(1, width // heads)),
        "qk_norm": "weighted",
        "norm_eps": eps,
        **rotary(config, base=1e6),
    }
    mlp = {"type": "mlp", "hidden": _hidden(config)}
    layers = []
    for index, kind in enumerate(_kinds(config)):
        place = f"model.layers.{index}"
        if kind == CONV:
            names = ["in_proj", "conv", "out_proj"]
            tensors = {f"{name}.weight": origin(f"{place}.conv.{name}.weight") for name in names}
            tensors |= {f"{name}.bias": origin(f"{place}.conv.{name}.bias") for name in names if bias}
        else:
            inner = f"{place}.self_attn"
            tensors = linear("qkv", *(f"{inner}.{name}_proj" for name in "qkv"), rows=qkv_rows(attention))
            tensors |= linear("out", f"{inner}.out_proj")
            tensors |= {f"{name}_norm": origin(f"{inner}.{name}_layernorm.weight") for name in "qk"}
        feeding = linear("gate_up", f"{place}.feed_forward.w1", f"{place}.feed_forward.w3")
        feeding |= linear("out", f"{place}.feed_forward.w2")
        mixer = conv if kind == CONV else attention
        layers.append(
            [Part(mixer, norm(f"{place}.operator_norm"), tensors), Part(mlp, norm(f"{place}.ffn_norm"), feeding)]
        )
    return Plan(
        layers,
        width,
        config.size("vocab_size"),
        "model.embed_tokens.weight",
        norm("model.embedding_norm"),
        eps,
        config.flag("tie_embedding", config.flag("tie_word_embeddings", True)),
    )


def _kinds(config: Config) -> list[Any]:
    """The kind of every layer: `layer_types`, or attention where `full_attn_idxs` says so; all without either."""
    count = config.size("num_hidden_layers")
    attending = config.items("full_attn_idxs", list(range(count)))
    kinds = [ATTENTION if index in attending else CONV for index in range(count)]
    kinds = config.items("layer_types", kinds, count)
    for kind in kinds:
        if kind not in (CONV, ATTENTION):
            raise config.unsupported("layer_types", kind, (CONV, ATTENTION))
    return kinds


def _hidden(config: Config) -> int:
    """The inner width of the MLPs: what the config states, or two thirds of it, in multiples."""
    hidden = config.size("block_ff_dim", config.size("intermediate_size", 12288))
    if not config.flag("block_auto_adjust_ff_dim", True):
        return hidden
    hidden = 2 * hidden // 3
    if (times := config.get("block_ffn_dim_multiplier", 1.0)) is not None:
        multiple = config.size("block_multiple_of", 256)
        hidden = -(-int(times * hidden) // multiple) * multiple
    return hidden


ARCHITECTURES: Architectures = {
    "Lfm2ForCausalLM": lfm2,
}

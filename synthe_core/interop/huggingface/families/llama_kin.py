"""Near kin of Llama: Granite, SmolLM3, Ministral, Arcee, Seed-OSS, Helium, ERNIE 4.5, GLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    decoder_layers,
    interleaved,
    mlp_keys,
    sliding_window,
    transformer_plan,
    windows_of,
)
from synthe_core.interop.huggingface.families.phi import fused_mlp
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Plan
from synthe_core.interop.huggingface.families.rotary import rotary
from synthe_core.interop.huggingface.published import Config


def granite(config: Config) -> Plan:
    """Embeddings, scores, what learners add and logits are scaled."""
    scaled = {"scale": config.number("residual_multiplier", 1.0)}
    scale = config.number("attention_multiplier", 1.0)
    keys = attention_keys(config, bias=_bias(config), scale=scale, residual=scaled) | rotary(config)
    mlp = mlp_keys(config, bias=config.flag("mlp_bias", False), residual=scaled)
    layers = decoder_layers(config, keys, mlp)
    scales = {
        "embedding_scale": config.number("embedding_multiplier", 1.0),
        "logit_scale": 1 / config.number("logits_scaling", 1.0),
    }
    return transformer_plan(config, layers, options=scales)


def smollm3(config: Config) -> Plan:
    """Some layers have no positions."""
    count, interval = config.size("num_hidden_layers"), config.size("no_rope_layer_interval", 4)
    positions = config.items("no_rope_layers", [int((index + 1) % interval != 0) for index in range(count)], count)
    window = sliding_window(config, None) if config.flag("use_sliding_window", False) else None
    kinds = ["sliding_attention" if window and not each else "full_attention" for each in positions]
    windows = windows_of(config, kinds, window)
    keys = attention_keys(config, groups=4, bias=_bias(config))
    turned = rotary(config, base=2e6)
    attention = [
        keys | {"window": each} | (turned if has_positions else {"rope": None})
        for each, has_positions in zip(windows, positions, strict=True)
    ]
    layers = decoder_layers(config, attention, mlp_keys(config, bias=config.flag("mlp_bias", False)))
    return transformer_plan(config, layers, tie=config.flag("tie_word_embeddings", True))


def ministral(config: Config) -> Plan:
    window = sliding_window(config)
    kind = "full_attention" if window is None else "sliding_attention"
    windows = windows_of(config, [kind] * config.size("num_hidden_layers"), window)
    keys = attention_keys(config, groups=8) | rotary(config)
    return transformer_plan(
        config, decoder_layers(config, [keys | {"window": each} for each in windows], mlp_keys(config))
    )


def arcee(config: Config) -> Plan:
    """An MLP of squared ReLUs, without a gate."""
    mlp = mlp_keys(config, default="relu2", gated=False, bias=config.flag("mlp_bias", False))
    keys = attention_keys(config, bias=_bias(config)) | rotary(config)
    return transformer_plan(config, decoder_layers(config, keys, mlp), eps=config.number("rms_norm_eps", 1e-5))


def seed_oss(config: Config) -> Plan:
    before, after = config.flag("attention_bias", True), config.flag("attention_out_bias", False)
    bias = {(True, True): "all", (True, False): "qkv", (False, True): "out"}.get((before, after), "none")
    keys = attention_keys(config, size=128, groups=8, bias=bias) | rotary(config)
    return transformer_plan(config, decoder_layers(config, keys, mlp_keys(config, bias=config.flag("mlp_bias", False))))


def helium(config: Config) -> Plan:
    bias = "qkv" if config.flag("attention_bias", False) else "none"
    keys = attention_keys(config, size=128, groups=20, bias=bias) | rotary(config, base=1e5)
    mlp = mlp_keys(config, bias=config.flag("mlp_bias", False))
    layers = decoder_layers(config, keys, mlp, attend=neighbours)
    return transformer_plan(config, layers, eps=config.number("rms_norm_eps", 1e-8))


def ernie4_5(config: Config) -> Plan:
    bias = config.flag("use_bias", False)
    keys = attention_keys(config, size=128, groups=2, bias="all" if bias else "none") | rotary(config, base=5e5)
    layers = decoder_layers(config, keys, mlp_keys(config, bias=bias), attend=neighbours)
    eps, tie = config.number("rms_norm_eps", 1e-5), config.flag("tie_word_embeddings", True)
    return transformer_plan(config, layers, eps=eps, tie=tie)


def glm(config: Config) -> Plan:
    return _glm(config, {})


def glm4(config: Config) -> Plan:
    after = ("post_self_attn_layernorm", "post_mlp_layernorm")
    return _glm(config, {"residual": {"norm": "both"}}, after=after)


def _glm(config: Config, residual: dict[str, Any], **norms: Any) -> Plan:
    bias = "qkv" if config.flag("attention_bias", True) else "none"
    keys = attention_keys(config, size=128, groups=2, bias=bias, **residual)
    keys |= rotary(config, keys["head_size"], 0.5)
    layers = decoder_layers(config, keys, mlp_keys(config, **residual), attend=neighbours, feed=fused_mlp, **norms)
    return transformer_plan(config, layers, eps=config.number("rms_norm_eps", 1.5625e-7))


def neighbours(inner: str, keys: Mapping[str, Any], out: str = "o_proj") -> dict[str, Origin]:
    """Attention whose positions turn neighbouring channels. out: the name of its output map."""
    return interleaved(attention_tensors(inner, keys, out=out), keys)


def _bias(config: Config) -> str:
    return "all" if config.flag("attention_bias", False) else "none"


ARCHITECTURES: Architectures = {
    "ArceeForCausalLM": arcee,
    "Ernie4_5ForCausalLM": ernie4_5,
    "Glm4ForCausalLM": glm4,
    "GlmForCausalLM": glm,
    "GraniteForCausalLM": granite,
    "HeliumForCausalLM": helium,
    "MinistralForCausalLM": ministral,
    "SeedOssForCausalLM": seed_oss,
    "SmolLM3ForCausalLM": smollm3,
}

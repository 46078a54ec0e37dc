"""Transformers with rotary positions and LayerNorm: StableLM, StarCoder2, Cohere (Command R), Nemotron."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    attention_tensors,
    decoder_layers,
    head_size,
    mlp_keys,
    mlp_tensors,
    sliding_window,
    transformer_plan,
    windows_of,
)
from synthe_core.interop.huggingface.families.llama_kin import neighbours
from synthe_core.interop.huggingface.families.plan import Architectures, Origin, Plan, norm
from synthe_core.interop.huggingface.families.rotary import rotary
from synthe_core.interop.huggingface.published import Config

WITH_BIAS = partial(norm, bias=True)
SHARED = {"norm": "shared"}
PARALLEL = ("input_layernorm", None)


def stablelm(config: Config) -> Plan:
    config.only("qk_layernorm", False)
    keys = attention_keys(config, groups=32, bias="qkv" if config.flag("use_qkv_bias", False) else "none")
    keys |= {"head_size": head_size(config)} | rotary(config, head_size(config), 0.25)
    if config.flag("use_parallel_residual", False):
        mlp = mlp_keys(config, residual=SHARED)
        layers = decoder_layers(config, keys, mlp, norm=WITH_BIAS, before=PARALLEL)
    else:
        layers = decoder_layers(config, keys, mlp_keys(config), norm=WITH_BIAS)
    eps = config.number("layer_norm_eps", 1e-5)
    return transformer_plan(config, layers, norm=WITH_BIAS("model.norm"), eps=eps, options={"norm": "layer"})


def starcoder2(config: Config) -> Plan:
    bias = config.flag("use_bias", True)
    window = sliding_window(config, None) or "full"
    keys = attention_keys(config, groups=2, bias="all" if bias else "none", window=window) | rotary(config)
    layers = decoder_layers(
        config,
        keys,
        mlp_keys(config, default="gelu_pytorch_tanh", gated=False, bias=bias),
        norm=WITH_BIAS,
        feed=partial(mlp_tensors, up="c_fc", down="c_proj"),
    )
    return transformer_plan(
        config,
        layers,
        norm=WITH_BIAS("model.norm"),
        eps=config.number("norm_epsilon", 1e-5),
        tie=config.flag("tie_word_embeddings", True),
        options={"norm": "layer"},
    )


def cohere(config: Config) -> Plan:
    config.only("use_qk_norm", False)
    return _cohere(config, ["full"] * config.size("num_hidden_layers"), 5e5, {})


def cohere2(config: Config) -> Plan:
    """Layers with full attention have no positions."""
    pattern = config.size("sliding_window_pattern", 4)
    layers = range(1, config.size("num_hidden_layers") + 1)
    kinds = ["sliding_attention" if index % pattern else "full_attention" for index in layers]
    windows = windows_of(config, kinds, sliding_window(config))
    return _cohere(config, windows, 1e4, {"head_size": head_size(config)}, full={"rope": None})


def _cohere(
    config: Config, windows: list[int | str], base: float, own: dict[str, Any], full: dict[str, Any] | None = None
) -> Plan:
    """Attention and an MLP side by side. own: keys of attention; full: further ones of layers with full attention."""
    keys = attention_keys(config, bias="all" if config.flag("attention_bias", False) else "none") | own
    turned = keys | rotary(config, base=base)
    attention = [
        {**(keys | full if full is not None and window == "full" else turned), "window": window} for window in windows
    ]
    layers = decoder_layers(config, attention, mlp_keys(config, residual=SHARED), before=PARALLEL, attend=_attention)
    return transformer_plan(
        config,
        layers,
        eps=config.number("layer_norm_eps", 1e-5),
        tie=config.flag("tie_word_embeddings", True),
        options={"norm": "layer_no_bias", "logit_scale": config.number("logit_scale", 0.0625)},
    )


def _attention(inner: str, keys: Mapping[str, Any]) -> dict[str, Origin]:
    """Positions turn neighbouring channels, where there are any."""
    return neighbours(inner, keys) if keys.get("rope") else attention_tensors(inner, keys)


def nemotron(config: Config) -> Plan:
    keys = attention_keys(config, bias="all" if config.flag("attention_bias", False) else "none")
    keys |= rotary(config, keys["head_size"], 0.5)
    one_more = partial(norm, bias=True, zero_centered=True)
    mlp = mlp_keys(config, default="relu2", gated=False, bias=config.flag("mlp_bias", False))
    return transformer_plan(
        config,
        decoder_layers(config, keys, mlp, norm=one_more),
        norm=one_more("model.norm"),
        eps=config.number("norm_eps", 1e-5),
        options={"norm": "layer"},
    )


ARCHITECTURES: Architectures = {
    "Cohere2ForCausalLM": cohere2,
    "CohereForCausalLM": cohere,
    "NemotronForCausalLM": nemotron,
    "StableLmForCausalLM": stablelm,
    "Starcoder2ForCausalLM": starcoder2,
}

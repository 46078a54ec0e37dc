"""Llama and its nearest kin: attention and a gated MLP, each behind a norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synthe_core.interop.huggingface.families.decoder import (
    attention_keys,
    decoder_layers,
    layer_places,
    mlp_keys,
    sliding_window,
    transformer_plan,
    windows_of,
)
from synthe_core.interop.huggingface.families.plan import Architectures, Plan
from synthe_core.interop.huggingface.families.rotary import rotary
from synthe_core.interop.huggingface.published import Config


def llama(config: Config) -> Plan:
    bias = "all" if config.flag("attention_bias", False) else "none"
    return _transformer(config, {"bias": bias}, mlp_bias=config.flag("mlp_bias", False))


def mistral(config: Config) -> Plan:
    return _transformer(config, {"window": sliding_window(config) or "full"})


def qwen2(config: Config) -> Plan:
    return _transformer(config, {"bias": "qkv"}, windows=layer_windows(config))


def qwen3(config: Config) -> Plan:
    bias = "all" if config.flag("attention_bias", False) else "none"
    attention = {"bias": bias, "qk_norm": "weighted", "norm_eps": config.number("rms_norm_eps", 1e-6)}
    return _transformer(config, attention, windows=layer_windows(config), head_size=128)


def _transformer(
    config: Config,
    attention: Mapping[str, Any],
    *,
    windows: list[int | str] | None = None,
    mlp_bias: bool = False,
    head_size: int | None = None,
) -> Plan:
    """Attention and a gated MLP, each behind a norm. `attention` has the options that differ from the default,
    `windows` the window of each layer if it is not among them, `head_size` the default of head_dim."""
    keys = {**attention_keys(config, size=head_size), **rotary(config), **attention}
    mlp = mlp_keys(config, bias=mlp_bias)
    each = [keys | ({} if windows is None else {"window": windows[index]}) for index, _ in layer_places(config)]
    return transformer_plan(config, decoder_layers(config, each, mlp))


def layer_windows(config: Config) -> list[int | str]:
    """Each layer's window as Qwen's configs say it: by layer_types, or from layer max_window_layers on."""
    layers = config.size("num_hidden_layers")
    window = sliding_window(config) if config.flag("use_sliding_window", False) else None
    first = config.size("max_window_layers", 28, least=0) if window else layers
    kinds = ["sliding_attention" if index >= first else "full_attention" for index in range(layers)]
    return windows_of(config, kinds, window)


ARCHITECTURES: Architectures = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
}
